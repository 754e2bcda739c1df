"""`neuralgate edit --dial auto` and `neuralgate apply --scale`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_neuralgate.cli import main
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.edit.dial import DIAL_SCALES
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.evaluation.callback import RefusalMetricsCallback
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS
from lightning_neuralgate.tasks.item import BrokenItems
from tests.cli.test_cli import QUIET


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sizes = "--edit_records 1 --test_records 1 --edit_pairs 1 --test_pairs 1 --validation_records 1 --retention_count 0"
    subjects = ["--subjects", "[passport]", "--unseen", "[drone]"]
    assert main(["render", "--out", str(folder), *sizes.split(), *subjects]) == 0
    return folder


def _edit(checkpoint: Path, data: Path, out: Path) -> list[str]:
    options = ["--editor.layers", "[1]", "--editor.lr", "0.01", "--editor.max_new_tokens", "2", "--dial", "auto"]
    return ["edit", "--model.name", str(checkpoint), "--data.folder", str(data), *options, *QUIET, "--out", str(out)]


@pytest.mark.parametrize("reached", [True, False])
def test_the_least_share_that_keeps_to_the_leak_rate_is_saved_and_the_full_edit_stays(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    reached: bool,
) -> None:  # fmt: skip
    leaks = iter([0.9, 0.8, 0.6, 0.04, 0.2, *[0.0] * 6] if reached else [0.9] * 11)
    measured = RefusalMetricsCallback.measure

    def measure(self, trainer, module):  # type: ignore[no-untyped-def]
        values = measured(self, trainer, module)
        return {**values, "held_out/validation/leak_rate": next(leaks)}

    monkeypatch.setattr(RefusalMetricsCallback, "measure", measure)
    out = tmp_path / "edited"
    assert main(_edit(checkpoint, data, out)) == 0
    printed = capsys.readouterr().out
    dial = json.loads((out / "dial.json").read_text())
    assert [point["scale"] for point in dial["frontier"]] == list(DIAL_SCALES)
    assert set(dial["frontier"][0]) == {"scale", "leak_rate", "rta_sensitive", "answer_rate_benign"}
    assert (dial["scale"], dial["reached"], dial["max_leak"]) == (0.3 if reached else 1.0, reached, 0.05)
    delta, full = out / "edit.safetensors", out / "full_edit.safetensors"
    assert full.exists() == reached
    assert ("<-" in printed) == reached
    if not reached:
        assert "no share of the edit leaks at most 0.05 on the validation records; the full edit is kept" in printed
        return
    assert EditDelta.load(delta).provenance["scale"] == "0.3"
    for file, scale, name in ((full, "1", "full"), (full, "0.3", "scaled")):
        arguments = ["--edit", str(file), "--model", str(checkpoint), "--out", str(tmp_path / name), "--scale", scale]
        assert main(["apply", *arguments]) == 0
    assert WeightFiles(tmp_path / "scaled").checksum == WeightFiles(out).checksum
    base, whole, part = (load_file(f / "model.safetensors") for f in (checkpoint, tmp_path / "full", out))
    name = next(key for key in base if key.endswith("layers.1.mlp.down_proj.weight"))
    assert torch.allclose(part[name], base[name] + 0.3 * (whole[name] - base[name]), atol=1e-7)
    assert not torch.equal(whole[name], part[name])
    for file, model in ((delta, out), (tmp_path / "scaled" / "edit.safetensors", tmp_path / "scaled")):
        reverted = tmp_path / f"reverted-{model.name}"
        assert main(["revert", "--edit", str(file), "--model", str(model), "--out", str(reverted)]) == 0
        assert WeightFiles(reverted).checksum == WeightFiles(checkpoint).checksum
        assert not (reverted / "full_edit.safetensors").exists()


def test_data_without_validation_records_is_refused_before_the_model_is_loaded(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (data / "records.jsonl").read_text().splitlines()
    other = Path(shutil.copytree(data, tmp_path / "data"))
    (other / "records.jsonl").write_text("\n".join(line for line in lines if '"split": "validation"' not in line))
    command = [
        word if word != str(data) else str(other) for word in _edit(tmp_path / "no-model", data, tmp_path / "out")
    ]
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "no record of the split 'validation'; add some, or render the data with `neuralgate render" in message


def test_validation_records_are_no_test_split(data: Path) -> None:
    items = BENCHMARKS["privacy_pair"].source(None, DataOptions(folder=data))(BrokenItems())
    assert {item.fields["split"] for item in items} == {"test", "unseen_attributes", "unseen_subjects"}
