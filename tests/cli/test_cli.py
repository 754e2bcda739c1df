"""The command line on a tiny checkpoint: subcommands, their output and their errors."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from lightning_neuralgate import NeuralGate
from lightning_neuralgate.cli import SUBCOMMANDS, main
from lightning_neuralgate.cli.layers import _restore
from lightning_neuralgate.data.rendering.spec import SUBJECTS_FOLDER
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.metrics.functional import is_refusal
from lightning_neuralgate.tasks.answer_store import read_answered
from tests.helpers.tiny_llava import tiny_llava

QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
SPLITS = ("test", "unseen_attributes", "unseen_subjects")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sizes = "--edit_records 1 --test_records 1 --edit_pairs 2 --test_pairs 1"
    assert main(["render", "--out", str(folder), "--seed", "3", *sizes.split()]) == 0
    return folder


def test_locate_edit_and_eval(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model.name", str(checkpoint), "--data.folder", str(data)]
    gate, edited, measured = tmp_path / "gate", tmp_path / "edited", tmp_path / "measured"

    locator = ["--locator.layers", "[1]", "--locator.max_steps", "8"]
    assert main(["locate", *common, *locator, *QUIET, "--out", str(gate)]) == 0
    assert NeuralGate.from_pretrained(gate).subjects == ["passport", "receipt", "student id"]
    assert "strongly active" in capsys.readouterr().out

    options = tmp_path / "edit.yaml"
    options.write_text(
        f"gate: {gate}\neditor: {{layers: [1], lr: 0.01, max_new_tokens: 2, retention_weight: 1.0}}\n"
        f"data: {{retention: {data / 'retention.jsonl'}}}\nretention_per_batch: 2\n"
        "recovery_share: 1.0\nrecovery_depths: [2, 4]\nindirect_share: 0.5\n"
    )
    assert main(["edit", "--config", str(options), *common, *QUIET, "--out", str(edited)]) == 0
    weight = "model.language_model.layers.1.mlp.down_proj.weight"
    model = LlavaForConditionalGeneration.from_pretrained(edited)
    assert not model.state_dict()[weight].equal(tiny_llava().state_dict()[weight])

    delta = EditDelta.load(edited / "edit.safetensors")
    assert [name.endswith("layers.1.mlp.down_proj.weight") for name in delta.tensors] == [True]
    added = ("recovery_share", "recovery_depths", "indirect_share")
    assert [delta.provenance[name] for name in added] == ["1.0", "(2, 4)", "0.5"]
    assert delta.provenance["gate"] == NeuralGate.from_pretrained(gate).fingerprint
    edit = ["--edit", str(edited / "edit.safetensors")]
    capsys.readouterr()
    assert main(["diff", *edit]) == 0
    assert "rows changed" in capsys.readouterr().out
    reverted, again = tmp_path / "reverted", tmp_path / "again"
    assert main(["revert", *edit, "--model", str(edited), "--out", str(reverted)]) == 0
    assert WeightFiles(reverted).checksum == WeightFiles(checkpoint).checksum
    assert main(["apply", *edit, "--model", str(reverted), "--out", str(again)]) == 0
    assert WeightFiles(again).checksum == WeightFiles(edited).checksum
    assert main(["revert", *edit, "--model", str(checkpoint), "--out", str(tmp_path / "no")]) == 1
    assert "nothing to be done" in capsys.readouterr().err
    written = tmp_path / "diff.safetensors"
    assert main(["diff", "--base", str(checkpoint), "--edited", str(edited), "--out", str(written)]) == 0
    assert EditDelta.load(written).edited == delta.edited
    assert main(["diff", "--base", str(checkpoint)]) == 1
    assert "give --base and --edited" in capsys.readouterr().err

    ungated = tmp_path / "ungated"
    ungated.mkdir()
    (ungated / "edit.safetensors").write_text("of an earlier edit")
    options.write_text(options.read_text().replace(f"gate: {gate}\n", ""))
    assert main(["edit", "--config", str(options), *common, *QUIET, "--out", str(ungated)]) == 0
    assert EditDelta.load(ungated / "edit.safetensors").edited == WeightFiles(ungated).checksum
    plain = LlavaForConditionalGeneration.from_pretrained(ungated)
    assert not model.state_dict()[weight].equal(plain.state_dict()[weight]), "the gate changes the edit"
    edit, retention = ["edit", *common, *QUIET, "--editor.layers", "[1]"], str(data / "retention.jsonl")
    for arguments, message in (
        ([*edit, "--data.retention", retention, "--editor.retention_weight", "0"], "has no effect"),
        ([*edit, "--retention_per_batch", "1"], "needs --data.retention"),
        (["locate", *common, *locator, *QUIET, "--data.retention", retention], "stage 1 has no retention term"),
        (["eval", *common, "--data.retention", retention], "nothing is edited here"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "refused")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()

    common[1] = str(edited)
    assert main(["eval", *common, "--max_new_tokens", "3", "--out", str(measured)]) == 0
    scores = json.loads((measured / "scores.json").read_text())["tasks"]
    assert list(scores) == ["privacy_pair"]
    answers = list(read_answered(measured))
    assert Counter(answer.fields["split"] for answer in answers) == dict.fromkeys(SPLITS, 6)
    for split in SPLITS:
        sensitive = [row for row in answers if row.fields["split"] == split and row.fields["role"] == "sensitive"]
        refused = sum(is_refusal(answer.answer) for answer in sensitive)
        assert scores["privacy_pair"]["figures"][f"{split}/rta_sensitive"] == refused / len(sensitive)
    assert sorted(path.name for path in measured.iterdir()) == ["answers.jsonl", "run.json", "scores.json"]


def test_num_workers_does_not_change_results(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    common = ["--model.name", str(checkpoint), "--data.folder", str(data), *QUIET]
    gates, weights = [], []
    for number, more in enumerate((["--num_workers", "0"], ["--num_workers", "2"])):
        gate, edited = tmp_path / f"gate-{number}", tmp_path / f"edited-{number}"
        locator = ["--locator.layers", "[1]", "--locator.max_steps", "4"]
        assert main(["locate", *common, *locator, *more, "--out", str(gate)]) == 0
        gates.append([(gate / name).read_bytes() for name in ("gate.safetensors", "gate.json")])
        editor = ["--editor.layers", "[1]", "--trainer.limit_val_batches", "0", "--gate", str(gate)]
        assert main(["edit", *common, *editor, *more, "--out", str(edited)]) == 0
        weights.append(WeightFiles(edited).checksum)
    assert gates[0] == gates[1]
    assert weights[0] == weights[1]


def test_errors_are_one_message_with_exit_code_1(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "--model.name", str(checkpoint), "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert "neuralgate eval: name the data: either --data.folder" in capsys.readouterr().err
    assert main([*arguments, "--data.folder", str(tmp_path / "none")]) == 1
    assert f"there is no file {tmp_path / 'none' / 'records.jsonl'}; `neuralgate render`" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    out = str(tmp_path / "out")
    assert main([*arguments[:2], str(empty), "--data.folder", str(data), "--out", out]) == 1
    assert "cannot be loaded as an image-text-to-text model" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json*")), "nothing is left half-written"


SMALL = ["--edit_records", "1", "--test_records", "1", "--edit_pairs", "1", "--test_pairs", "1"]


def test_render_custom_subjects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = (SUBJECTS_FOLDER / "passport.yaml").read_text()
    for name in ("visa", "badge"):
        (tmp_path / f"{name}.yaml").write_text(shipped.replace("subject: passport", f"subject: {name}"))
    visa, badge, out = str(tmp_path / "visa.yaml"), str(tmp_path / "badge.yaml"), tmp_path / "out"
    (tmp_path / "options.yaml").write_text(f"subject_spec: [{visa}, {badge}]\n")
    variants = (
        ["--subject-spec", visa, "--subject_spec", badge],
        ["--subject-spec", f"[{visa}, {badge}]"],
        ["--config", str(tmp_path / "options.yaml")],
    )
    for variant in variants:
        assert main(["render", *variant, "--out", str(out), *SMALL]) == 0
        captured = capsys.readouterr()
        assert "2 edit, 2 test, 2 unseen_attributes, 2 unseen_subjects records" in captured.out
        assert "pictures: 100%" in captured.err
        assert {path.stem for path in out.glob("*.png")} == {
            f"contact-sheet-{name}" for name in ("visa", "badge", "driver-licence")
        }
        shutil.rmtree(out)
    assert main(["render", "--subject-spec", visa, "--contact-sheets", str(out)]) == 0
    assert [path.name for path in out.glob("[!.]*")] == ["visa.png"]


def test_render_errors_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("subject: ticket\ncolour_field: colour\n")
    for option in ("--out", "--contact_sheets"):
        assert main(["render", "--subject-spec", str(bad), option, str(tmp_path / "out")]) == 1
        assert f"neuralgate render: {bad}, line 1: fields: Field required" in capsys.readouterr().err
    assert main(["render"]) == 1
    assert "no output folder given: use --out FOLDER" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_help_describes_every_option(subcommand: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main([subcommand, "--help"])
    assert exit_code.value.code == 0
    printed = capsys.readouterr().out
    assert "--config" in printed
    assert ("--out" in printed) == (subcommand not in ("ask", "play"))  # which write no files


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from lightning_neuralgate.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    assert all(name in done.stdout for name in SUBCOMMANDS)


@pytest.mark.parametrize(
    "option", [["--recovery_share", "1.5"], ["--indirect_share", "-1"], ["--recovery_depths", "[0]"]]
)
def test_impossible_rows_are_refused_by_name(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(["edit", "--out", "edited", "--data.folder", "data", "--editor.layers", "[1]", *option])
    assert exit_code.value.code == 2
    assert option[0].removeprefix("--") in capsys.readouterr().err


def test_layers(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "layers"
    common = ["--model.name", str(checkpoint), "--data.folder", str(data), "--accelerator", "cpu", "--out", str(out)]
    search = ["--layers", "[2,0,1]", "--radius", "1", "--locator.max_steps", "8", "--tau", "0.2"]
    assert main(["layers", *common, *search, "--compare", "true", "--editor.lr", "0.01", "--limit", "4"]) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "layers.json").read_text())
    gate = NeuralGate.from_pretrained(out / "gate")
    assert gate.layers == [0, 1, 2]
    strong = {layer: results["shares"][str(layer)]["strong"] for layer in gate.layers}
    assert strong[results["centre"]] == max(strong.values()) > 0
    assert f"centre: layer {results['centre']}" in printed
    assert [int(layer) for layer in results["edits"]] == results["candidates"]
    assert all(0 <= rates["test"]["eta"] <= 1 for rates in results["edits"].values())
    assert {path.name for path in out.iterdir()} == {"gate", "shares.csv", "activity.csv", "layers.png", "layers.json"}
    again = [*common[:-1], str(tmp_path / "again")]
    assert main(["layers", *again, "--compare", "true", "--data.retention", str(data / "retention.jsonl")]) == 1
    assert "without a retention term" in capsys.readouterr().err
    assert main(["layers", *common, "--layers", "[7]"]) == 1
    assert "the model has layers 0 to 2" in capsys.readouterr().err


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_compared_edits_start_from_the_unedited_model(lora_rank: int) -> None:
    model = tiny_llava()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    projection = find_decoder(model).output_projection(1)
    base = copy.deepcopy(projection.state_dict())
    editor = PrivacyEditModule(model, [1], lora_rank=lora_rank)
    for parameter in editor.parameters():
        if parameter.requires_grad:
            parameter.data += 1
    _restore(model, 1, projection, base)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
