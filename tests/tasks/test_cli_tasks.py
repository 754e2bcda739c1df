from __future__ import annotations

import csv
import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from lightning_neuralgate.cli import main
from lightning_neuralgate.cli.eval import _folder_names
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.tasks.answer_store import read_answered
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS
from lightning_neuralgate.tasks.options import TaskSources, task_names
from lightning_neuralgate.tasks.questions import TaskQuestions
from tests.helpers.launch import launch
from tests.helpers.task_files import mme_folder, pope_files
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import random_gate

REFUSAL_RATES = ("rta_sensitive", "answer_rate_benign", "eta")
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
SHORT = ["--max_new_tokens", "3", "--limit", "4", *QUIET]


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edited")
    model = tiny_llava()
    weight = model.model.language_model.layers[1].mlp.down_proj.weight  # type: ignore[union-attr, operator]
    weight.data *= -1.5  # type: ignore[operator, union-attr]
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_two_models_are_compared_on_all_mini_tasks(
    checkpoint: Path, edited: Path, mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = mini.parent
    command = ["eval", "--tasks", "all", "--mini", "--model.name", str(checkpoint), "--and", str(edited), *SHORT]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "refusal_aware_accuracy" in printed
    assert "items have a different verdict" in printed
    assert printed.count("Refusals by keyword list 'prefix'.") == 2, "with the comparison and with the notes"
    assert "rule: an answer that holds the secret scores 3" in printed
    content = json.loads((out / "compare.json").read_text())
    assert set(content["tasks"]) == set(task_names("all"))
    alone = content["tasks"]["privacy_pair"]
    assert alone == {"n": 1, "figures": {}, "missing": [], "changed": alone["changed"]}
    assert "privacy_pair: too few records for a significance test;" in printed
    for folder in (out / checkpoint.name, out / edited.name):
        scores = json.loads((folder / "scores.json").read_text())
        assert scores["utility"]["missing"] == []
        assert scores["tasks"]["pope"]["figures"]["refused"] == content["tasks"]["pope"]["figures"]["refused"][
            "first" if folder.name == checkpoint.name else "second"
        ]  # fmt: skip
        counts = Counter(answer.task for answer in read_answered(folder))
        assert counts == {"pope": 4, "mme": 4, "scienceqa": 4, "mllmguard": 4, "privacy_pair": 4, "over_refusal": 4}
        assert sorted(path.name for path in folder.iterdir()) == ["answers.jsonl", "run.json", "scores.json"]


def test_sources_from_files_with_a_delta_and_a_gate(
    checkpoint: Path, edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    EditDelta.between(checkpoint, edited).save(tmp_path / "edit.safetensors")
    random_gate(tiny_llava()).save_pretrained(tmp_path / "gate")
    pope_files(tmp_path / "pope")
    mme_folder(tmp_path / "mme")
    files = ["--sources.pope", str(tmp_path / "pope"), "--sources.pope_images", str(tmp_path / "pope" / "val2014")]
    files += ["--sources.mme", str(tmp_path / "mme")]
    common = ["eval", "--tasks", "pope,mme", *files, "--max_new_tokens", "5", *QUIET]
    base = [*common, "--model.name", str(checkpoint)]
    edited_model = ["--model.name", str(edited)]
    delta = ["--delta", str(tmp_path / "edit.safetensors"), "--gate", str(tmp_path / "gate")]
    for name, command in (("base", base), ("edited", [*common, *edited_model]), ("delta", [*base, *delta])):
        assert main([*command, "--out", str(tmp_path / name)]) == 0
    answers = {name: (tmp_path / name / "answers.jsonl").read_bytes() for name in ("base", "edited", "delta")}
    assert answers["edited"] == answers["delta"] != answers["base"]
    content = json.loads((tmp_path / "delta" / "run.json").read_text())
    gate = NeuralGate.from_pretrained(tmp_path / "gate")
    delta_file = EditDelta.load(tmp_path / "edit.safetensors")
    assert content["notes"] == {"model": str(checkpoint), "delta": delta_file.edited, "gate": gate.fingerprint}
    assert content["questions"] == {"pope": 4, "mme": 8}
    assert content["settings"]["max_new_tokens"] == 5
    assert main([*base, *delta, "--and", str(checkpoint), "--out", str(tmp_path / "both")]) == 0
    for name, same in ((f"{checkpoint.name}-1", "base"), (f"{checkpoint.name}-2", "delta")):
        assert (tmp_path / "both" / name / "answers.jsonl").read_bytes() == answers[same]
    assert main([*common, *edited_model, *delta[:2], "--out", str(tmp_path / "no")]) == 1
    assert "there is nothing to be done" in capsys.readouterr().err
    random_gate(tiny_llava(layers=2)).save_pretrained(tmp_path / "other")
    assert main([*base, "--gate", str(tmp_path / "other"), "--out", str(tmp_path / "no")]) == 1
    assert "neuralgate eval:" in capsys.readouterr().err


def pope_command(checkpoint: Path, folder: Path) -> list[str]:
    """Write six questions of POPE and return the command that answers them, without --out."""
    pope_files(folder / "pope", 6)
    sources = ["--sources.pope", str(folder / "pope"), "--sources.pope_images", str(folder / "pope" / "val2014")]
    return ["eval", "--tasks", "pope", "--model.name", str(checkpoint), "--max_new_tokens", "3", *QUIET, *sources]


def test_broken_items_are_reported(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*pope_command(checkpoint, tmp_path), "--out", str(tmp_path / "out")]
    (tmp_path / "pope" / "val2014" / "COCO_0.png").unlink()
    (tmp_path / "pope" / "val2014" / "COCO_1.png").write_bytes(b"none")
    assert main(command) == 1
    assert "line 1: image " in capsys.readouterr().err
    assert main([*command, "--broken", "skip"]) == 0
    printed = capsys.readouterr().out
    assert "pope: 2 broken items skipped" in printed
    assert "2 items skipped because of their pictures" in printed
    assert [answer.item_id for answer in read_answered(tmp_path / "out")] == ["random/5", "random/6"]
    assert "pope: 4 skipped, see broken.jsonl" in printed
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    counts = {"available": 4, "asked": 4, "answered": 2, "skipped": 4, "missing": 0}
    assert (scores["questions"], scores["partial"]) == ({"pope": counts}, [])
    assert main(["score", str(tmp_path / "out"), "--out", str(tmp_path / "scored")]) == 0
    assert "pope: 4 skipped, see broken.jsonl" in capsys.readouterr().out
    assert json.loads((tmp_path / "scored" / "scores.json").read_text())["questions"] == {"pope": counts}
    assert main(["compare", str(tmp_path / "out"), str(tmp_path / "out"), "--out", str(tmp_path / "both")]) == 0
    assert "pope of out: 4 skipped, see broken.jsonl" in capsys.readouterr().out
    assert json.loads((tmp_path / "both" / "compare.json").read_text())["questions_second"] == {"pope": counts}


def test_a_partial_run_is_marked(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*pope_command(checkpoint, tmp_path), "--out", str(tmp_path / "out"), "--batch_size", "2"]
    assert main([*command, "--trainer.limit_predict_batches", "2"]) == 0
    printed = capsys.readouterr().out
    assert "pope: PARTIAL, 4 of 6 questions answered, 2 missing" in printed
    assert "pope (PARTIAL)" in printed
    assert "PARTIAL: 2 questions are not answered; run the same command without what ends it early" in printed
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["partial"] == ["pope"]
    assert main(["compare", str(tmp_path / "out"), str(tmp_path / "out"), "--out", str(tmp_path / "both")]) == 0
    assert "pope (PARTIAL)" in capsys.readouterr().out
    assert json.loads((tmp_path / "both" / "compare.json").read_text())["partial"] == ["pope"]
    assert main(command) == 0
    assert "PARTIAL" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["partial"] == []
    assert not (tmp_path / "out" / "unfinished").exists()
    assert main([*command[:-4], "--out", str(tmp_path / "few"), "--limit", "4"]) == 0
    assert "pope: 4 of 6 questions, by --limit" in capsys.readouterr().out


def test_task_names_are_parsed_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert task_names("all") == [name for name in BENCHMARKS if name not in ("xstest", "mossbench")]
    assert task_names(" mme, pope,mme") == ["mme", "pope"]
    for words, content in (("gqa", "there is no task 'gqa'; there are privacy_pair, pope"), (",", "name the tasks")):
        assert main(["eval", "--tasks", words, "--out", str(tmp_path)]) == 1
        assert content in capsys.readouterr().err
    with pytest.raises(DataFormatError, match=r"where is 'mme'\? Give --sources\.mme FOLDER, or --mini"):
        TaskSources().read(["mme"], DataOptions())
    with pytest.raises(DataFormatError, match=r"where is 'xstest'\? .*; --mini has no drawn set of it"):
        TaskSources().read(["xstest"], DataOptions())
    with pytest.raises(DataFormatError, match=r"name the data: either --data\.folder"):
        TaskSources().read(["privacy_pair"], DataOptions())


def test_folders_of_two_models_stay_in_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models" / "base")
    assert _folder_names(".", "..") == ("base", "models")
    assert _folder_names("owner/name", "owner/name") == ("name-1", "name-2")


def test_a_survey_decodes_no_pictures(tmp_path: Path) -> None:
    pope_files(tmp_path / "pope")
    for file in (tmp_path / "pope" / "val2014").iterdir():
        file.write_bytes(b"none")
    source = TaskSources(pope=str(tmp_path / "pope"), pope_images=tmp_path / "pope" / "val2014").read(
        ["pope"], DataOptions()
    )
    assert TaskQuestions(source).survey().total == 4
    assert isinstance(source["pope"], partial)


def test_an_edit_is_evaluated_on_benchmarks_during_training(checkpoint: Path, mini: Path, tmp_path: Path) -> None:
    command = ["edit", "--model.name", str(checkpoint), "--data.folder", str(mini / "privacy_pair"), *QUIET]
    command += [
        "--editor.layers",
        "[1]",
        "--editor.lr",
        "0.01",
        "--editor.max_new_tokens",
        "2",
        "--pairs_per_batch",
        "3",
    ]
    command += ["--measure_every", "1", "--measure_tasks", "mme,privacy_pair", "--measure_limit", "4"]
    command += ["--sources.mme", str(mini / "mme"), "--trainer.logger", "CSVLogger", "--trainer.logger.version", ""]
    command += ["--trainer.logger.save_dir", str(tmp_path / "logs"), "--out", str(tmp_path / "edited")]
    assert main(command) == 0
    (file,) = (tmp_path / "logs").rglob("metrics.csv")
    with file.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["tasks/mme/accuracy"]]
    # three records of two pairs each, three pairs a step
    assert [int(row["step"]) for row in rows] == [0, 1, 2]
    assert all(0 <= float(row["tasks/mme/accuracy"]) <= 1 for row in rows)
    assert any(name.startswith("tasks/privacy_pair/") and value for name, value in rows[-1].items())


@pytest.mark.slow
def test_two_processes_on_the_command_line(checkpoint: Path, edited: Path, mini: Path, tmp_path: Path) -> None:
    words = ["eval", "--tasks", "pope,mme,privacy_pair", "--mini", "--cache", "false"]
    words += ["--model.name", str(checkpoint), "--and", str(edited), *SHORT]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--out", str(tmp_path / "two")]
    launch("-m", "lightning_neuralgate.cli", *words, *ddp)
    for name in (checkpoint.name, edited.name):
        for file in ("answers.jsonl", "scores.json"):
            one, two = (tmp_path / world / name / file for world in ("one", "two"))
            assert one.read_bytes() == two.read_bytes()


def test_until_decided_gives_the_same_refusal_rates_in_shorter_answers(
    checkpoint: Path, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "--data.folder", str(mini / "privacy_pair"), "--model.name", str(checkpoint), *QUIET]
    command += ["--max_new_tokens", "12", "--variant", "prefix"]
    assert main([*command, "--out", str(tmp_path / "complete")]) == 0
    assert main([*command, "--until_decided", "true", "--out", str(tmp_path / "short")]) == 0
    complete, short = (
        json.loads((tmp_path / name / "scores.json").read_text())["tasks"]["privacy_pair"]["figures"]
        for name in ("complete", "short")
    )
    rates = {f"{split}/{rate}" for split in ("test", "unseen_attributes", "unseen_subjects") for rate in REFUSAL_RATES}
    assert short.keys() == rates
    assert short == {name: value for name, value in complete.items() if name in rates}
    lengths = [sum(len(answer.answer) for answer in read_answered(tmp_path / name)) for name in ("complete", "short")]
    assert lengths[1] < lengths[0]
    assert main(["score", str(tmp_path / "short"), "--out", str(tmp_path / "again")]) == 0
    capsys.readouterr()
    assert main(["score", str(tmp_path / "short"), "--variant", "gcg"]) == 1
    message = "ends where keyword list 'prefix' was decided, so keyword list 'gcg' cannot judge it"
    assert message in capsys.readouterr().err
