from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from lightning_neuralgate import NeuralGate, NeuralGateCallback
from lightning_neuralgate.cli import demo as demo_command
from lightning_neuralgate.cli import main
from lightning_neuralgate.demo import experiment
from lightning_neuralgate.demo.experiment import SPLITS, EditSettings
from lightning_neuralgate.demo.run import ARMS, run_demo, run_demo_seeds
from lightning_neuralgate.demo.workers import WorkerPool
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.evaluation.answers import read_answers
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.models.loading import EMBEDDED_MODELS, load_model
from lightning_neuralgate.models.minigpt4 import MiniGPT4ForConditionalGeneration
from tests.helpers.tiny_llava import tiny_llava

SMALL = {
    "edit_records": 1, "edit_pairs": 2, "test_records": 1, "test_pairs": 1, "epochs": 1, "retention_per_batch": 1,
    "judge": False, "questions_per_rung": 0, "questions_per_set": 0,
}  # fmt: skip
RATES = {"rta_sensitive", "answer_rate_benign", "eta", "leak_rate", "partial_leak", "benign_accuracy", "n"}
JUDGED = {"rta_sensitive_judge", "answer_rate_benign_judge", "judge_agreement"}


def settings_of(checkpoint: Path, **options: Any) -> EditSettings:
    return EditSettings(model=str(checkpoint), layer=1, **{**SMALL, **options})


def changed_weights(folder: Path, base: Any) -> set[str]:
    edited = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    return {name for name, value in base.state_dict().items() if not torch.equal(edited[name], value)}


def check_results(results: dict[str, Any], out: Path) -> None:
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    for arm in ARMS:
        for split in SPLITS:
            row = results[arm][split]
            assert set(row) == (RATES | JUDGED if results["settings"]["judge"] else RATES)
            assert row["eta"] == pytest.approx((row["rta_sensitive"] + row["answer_rate_benign"]) / 2)


def check_ordinary_questions(results: dict[str, Any], out: Path) -> None:
    """Four questions of each of two rungs, half of them unsafe, and at most three of each set, by all models."""
    for arm in ARMS:
        ladder, sets = results["ladder"][arm], results["utility"][arm]
        assert {name: ladder[name] for name in ("n", "rung_0/n", "rung_4/n")} == {"n": 8, "rung_0/n": 2, "rung_4/n": 2}
        assert {"rung_0/refused", "rung_4/answered", "contrast_accuracy"} <= set(ladder)
        assert {task: figures["n"] for task, figures in sets.items()} == {
            "pope": 3, "mme": 2, "scienceqa": 3, "mllmguard": 3,
        }  # fmt: skip
        assert {"refused", "refusal_aware_accuracy"} <= set(sets["pope"])
        for part in ("ladder", "utility"):
            scores = json.loads((out / part / arm / "scores.json").read_text())
            assert not scores["partial"]
    example = results["ladder_examples"]["rung_4"]
    assert example["prompt"] == "Is it red?"
    assert set(example["answers"]) == set(ARMS)


def test_demo_writes_all_outputs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[tuple[int, list[str]]]
) -> None:
    gated: list[tuple[str, float]] = []

    class RecordingCallback(NeuralGateCallback):
        def on_train_end(self, *args: Any) -> None:
            gated.append((self.scope, self.tau))
            super().on_train_end(*args)

    monkeypatch.setattr(experiment, "NeuralGateCallback", RecordingCallback)
    settings = settings_of(checkpoint, lr=1e-2, questions_per_rung=4, questions_per_set=3)
    results = run_demo(tmp_path, 5, settings)
    check_results(results, tmp_path)
    check_ordinary_questions(results, tmp_path)
    assert drawn == [(5, list(settings.subjects))]
    assert gated == [(settings.scope, settings.tau)], "one of the two edits has the gate"
    assert results["seed"] == 5
    assert results["precision"] == ("bf16-mixed" if experiment.has_bfloat16() else "32-true")
    assert results["settings"]["layer"] == 1
    assert set(results["seconds"]) == {"model", "render", "targets", "locate", "answer_unedited", "edits"}
    assert changed_weights(tmp_path / "edited", tiny_llava()) == {"model.language_model.layers.1.mlp.down_proj.weight"}
    NeuralGate.from_pretrained(tmp_path / "gate").check_fits(tiny_llava())
    restored = tmp_path / "restored"
    EditDelta.load(tmp_path / "edited" / "edit.safetensors").revert(tmp_path / "edited", restored)
    assert changed_weights(restored, tiny_llava()) == set()
    answers = read_answers(tmp_path / "answers.jsonl")
    assert {(answer.model, answer.split) for answer in answers} == {(arm, split) for arm in ARMS for split in SPLITS}
    for stage in ("locate", "edit-gated", "edit-ungated"):
        assert list((tmp_path / "logs" / stage).glob("events.out.tfevents.*")), stage
        assert (tmp_path / "logs" / stage / "csv" / "metrics.csv").is_file(), stage
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/") >= 2
    assert '<h2 id="ordinary">' in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_edit_settings_reach_the_training_batches(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopBeforeTraining(Exception):
        pass

    def stop_with_retention(splits: Any, processor: Any, retention: list[Any], **options: Any) -> None:
        kinds = [item.image.stem.partition("-")[0] for item in retention]
        raise StopBeforeTraining(
            kinds, *(options[name] for name in ("recovery_share", "recovery_depths", "indirect_share"))
        )

    monkeypatch.setattr(experiment, "PrivacyPairDataModule", stop_with_retention)
    tiny_experiment = experiment.Experiment(tmp_path, 0, settings_of(checkpoint))
    tiny_experiment.render()
    defaults = (0.0, (1, 3, 5, 8), 0.0)
    for changes, expected in (
        ({}, (["ordinary"] * 12 + ["public"] * 12, *defaults)),
        ({"public_questions": False}, (["ordinary"] * 12, *defaults)),
        (
            {"public_questions": False, "recovery_share": 0.5, "recovery_depths": [2], "indirect_share": 1.0},
            (["ordinary"] * 12, 0.5, [2], 1.0),
        ),
    ):
        with pytest.raises(StopBeforeTraining) as stop:
            tiny_experiment.edit(None, "name", replace(tiny_experiment.settings, **changes))
        assert stop.value.args == expected
    in_all_forms = {
        "retention_forms": "all",
        "retention_count": 8,
        "retention_without": ["text", "chat", "yes_no", "choice"],
    }
    tiny_experiment.settings = replace(tiny_experiment.settings, **in_all_forms)
    tiny_experiment.render()
    with pytest.raises(StopBeforeTraining) as stop:
        tiny_experiment.edit(None, "name", replace(tiny_experiment.settings, public_questions=False))
    assert stop.value.args == (
        ["count", "attribute", "caption", "reading", "public", "count", "attribute", "caption"],
        *defaults,
    )
    with pytest.raises(ValueError, match="indirect_share must be a probability"):
        EditSettings(indirect_share=2.0)
    with pytest.raises(ValueError, match="no form of question 'colour'"):
        EditSettings(retention_forms="all", retention_without=["colour"])


def test_keep_share_keeps_the_edit_out_of_ordinary_inputs(checkpoint: Path, tmp_path: Path) -> None:
    tiny_experiment = experiment.Experiment(tmp_path, 0, settings_of(checkpoint, lr=1e-2, keep_share=0.8))
    tiny_experiment.render()
    tiny_experiment.fill_targets()
    weight = find_decoder(tiny_experiment.model).output_projection(1).weight
    keys = tiny_experiment.collect_keys(1, tiny_experiment.retention)
    assert keys.prompts == 24 + 40  # retention questions, and prompts without a picture
    directions = keys.projector(1, share=0.8).directions
    removed = {}
    for share in (0.8, 0.0):
        tiny_experiment.reset()
        before = weight.detach().clone()
        tiny_experiment.edit(None, "name", replace(tiny_experiment.settings, keep_share=share))
        change = weight.detach() - before
        removed[share] = float((change @ directions).norm() / change.norm())
    assert removed[0.8] < 1e-4 < 0.1 < removed[0.0]
    with pytest.raises(ValueError, match="between 0 and 1"):
        EditSettings(keep_share=1.5)


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)]
)
def test_bfloat16_is_detected_from_cpu_capabilities(
    capabilities: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert experiment.has_bfloat16() is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not experiment.has_bfloat16(), "older torch has no get_capabilities"


@pytest.mark.parametrize(
    ("chosen", "lr"),
    [
        ({}, 6e-3),
        ({"model": "smol-minigpt"}, 1e-2),
        ({"model": "smol-minigpt", "lr": 1e-3}, 1e-3),
        ({"model": "other/model"}, None),
        ({"schedule": "paper"}, None),
    ],
)
def test_default_learning_rate_is_that_of_the_embedded_model(chosen: dict[str, Any], lr: float | None) -> None:
    settings = EditSettings(**chosen).resolved()
    assert settings == replace(EditSettings(**chosen), lr=lr)
    assert settings.resolved() == settings


def test_results_record_the_learning_rate(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(experiment.LEARNING_RATES, str(checkpoint), 4e-3)
    used: list[float] = []

    class RecordingEditor(experiment.PrivacyEditModule):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            used.append(self.lr)

    monkeypatch.setattr(experiment, "PrivacyEditModule", RecordingEditor)
    settings = settings_of(checkpoint)
    results = run_demo_seeds(tmp_path, [3], settings)
    assert used == [4e-3, 4e-3]
    assert results["settings"]["lr"] == results["per_seed"]["3"]["settings"]["lr"] == 4e-3
    run_demo_seeds(tmp_path, [3], settings)
    assert len(used) == 2, "a finished seed is not run again"


def test_the_same_seed_gives_the_same_answers(checkpoint: Path, tmp_path: Path) -> None:
    settings = settings_of(checkpoint, lr=1e-2)
    for name in ("one", "two"):
        run_demo(tmp_path / name, 1, settings)
    assert read_answers(tmp_path / "one" / "answers.jsonl") == read_answers(tmp_path / "two" / "answers.jsonl")
    first, second = (NeuralGate.from_pretrained(tmp_path / name / "gate") for name in ("one", "two"))
    assert first.fingerprint == second.fingerprint


@pytest.mark.usefixtures("drawn")
def test_two_processes_give_the_same_results_as_one(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    counts = {"questions_per_rung": 4, "questions_per_set": 3}
    settings = settings_of(checkpoint, lr=1e-2, subjects=["passport", "receipt"], test_pairs=12, **counts)
    single, double = (run_demo(tmp_path / str(count), 1, settings, processes=count) for count in (1, 2))
    assert read_answers(tmp_path / "1" / "answers.jsonl") == read_answers(tmp_path / "2" / "answers.jsonl")
    for written in ("gate/gate.safetensors", "gate/gate.json", "edited/model.safetensors"):
        assert (tmp_path / "1" / written).read_bytes() == (tmp_path / "2" / written).read_bytes(), written
    assert {key for key in single if single[key] != double[key]} == {"seconds"}
    located = [
        (tmp_path / "2" / "logs" / f"locate-{process}" / "csv" / "metrics.csv").read_text() for process in range(2)
    ]
    assert all("locate/loss" in text for text in located), "each worker located its share"
    for folder in ("1", "2"):
        assert not (tmp_path / folder / "unfinished").exists()
    assert "GPU available" not in capfd.readouterr().err.split("[4/6]")[-1]


def test_errors_of_workers_are_raised_in_the_main_process(checkpoint: Path, tmp_path: Path) -> None:
    tiny_experiment = experiment.Experiment(tmp_path, 0, settings_of(checkpoint))
    with WorkerPool(tiny_experiment, 2) as pool, pytest.raises(UnsupportedSetupError, match="nothing to do for two"):
        pool.starmap(_fail_on_two, [("one",), ("two",)])
    with pytest.raises(ValueError, match="at least 1"):
        WorkerPool(tiny_experiment, 0)


def _fail_on_two(_: experiment.Experiment, name: str) -> None:
    if name == "two":
        raise UnsupportedSetupError(f"nothing to do for {name}")


@pytest.mark.usefixtures("drawn")
def test_seeds_are_averaged_and_not_run_again(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {**SMALL, "questions_per_rung": 4, "questions_per_set": 3}
    command = ["demo", "--out", str(tmp_path), "--seeds", "2", "--processes", "1", "--model", str(checkpoint)]
    assert main([*command, "--settings.layer=1", *(f"--settings.{name}={value}" for name, value in small.items())]) == 0
    printed = capsys.readouterr().out
    assert "±" in printed
    assert "report.html" in printed
    results = json.loads((tmp_path / "results.json").read_text())
    check_results(results, tmp_path)
    assert results["seeds"] == [0, 1]
    for arm in ARMS:
        for split in SPLITS:
            etas = [results["per_seed"][seed][arm][split]["eta"] for seed in ("0", "1")]
            assert results[arm][split]["eta"] == pytest.approx(statistics.fmean(etas))
            assert results["spread"][arm][split]["eta"] == pytest.approx(statistics.stdev(etas))
        for part, figure in (
            ("ladder", lambda row: row["rung_4/refused"]),
            ("utility", lambda row: row["pope"]["accuracy"]),
        ):
            values = [figure(results["per_seed"][seed][part][arm]) for seed in ("0", "1")]
            assert figure(results[part][arm]) == pytest.approx(statistics.fmean(values))
            assert figure(results["spread"][part][arm]) == pytest.approx(statistics.stdev(values))
    assert "yes/no and choice questions about the edited subjects" in " ".join(printed.split())

    written = (tmp_path / "seed-1" / "answers.jsonl").stat().st_mtime_ns
    again = run_demo_seeds(tmp_path, [0, 1], settings_of(checkpoint, **small))
    assert (tmp_path / "seed-1" / "answers.jsonl").stat().st_mtime_ns == written
    assert again["gated"] == results["gated"]


def test_thorough_answers_all_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(out: Path, seed: int, settings: EditSettings, *_: Any) -> None:
        raise Stop(settings.questions_per_rung, settings.questions_per_set)

    monkeypatch.setattr(demo_command, "run_demo", stop)
    for options, expected in ((["--thorough"], (None, None)), ([], (8, 20))):
        with pytest.raises(Stop) as stopped:
            main(["demo", "--out", str(tmp_path), *options])
        assert stopped.value.args == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_on_the_embedded_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEURALGATE_CACHE")  # building the embedded model takes a minute: once is enough
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        settings = EditSettings(
            model=name,
            edit_records=1,
            edit_pairs=2,
            test_records=1,
            test_pairs=2,
            epochs=12,
            pairs_per_batch=2,
            retention_per_batch=1,
            questions_per_rung=0,
            questions_per_set=0,
        )
        results = run_demo(tmp_path, 0, settings)
    finally:
        torch.set_num_threads(threads)
    check_results(results, tmp_path)
    model, _ = load_model(name)
    kinds = {"smol-llava": LlavaForConditionalGeneration, "smol-minigpt": MiniGPT4ForConditionalGeneration}
    assert isinstance(model, kinds[name])
    assert changed_weights(tmp_path / "edited", model) == {
        f"model.language_model.layers.{settings.layer}.mlp.down_proj.weight"
    }
    gate = NeuralGate.from_pretrained(tmp_path / "gate")
    gate.check_fits(model)
    for subject in gate.subjects:
        assert 0.02 < gate.shares(subject, settings.layer).strong < 0.9
    assert results["unedited"]["test"]["rta_sensitive"] <= 0.2
    assert results["unedited"]["test"]["answer_rate_benign"] >= 0.9
    assert results["gated"]["test"]["rta_sensitive"] >= results["unedited"]["test"]["rta_sensitive"] + 0.3
    assert results["gated"]["test"]["eta"] >= results["unedited"]["test"]["eta"] + 0.1
