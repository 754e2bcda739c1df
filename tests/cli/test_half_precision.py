"""`neuralgate edit` of a checkpoint in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_neuralgate.cli import main
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.edit.weight_files import WeightFiles
from tests.helpers.tiny_llava import tiny_llava, tiny_processor

QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


def test_an_edit_in_bfloat16_says_what_survives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, data, edited = tmp_path / "base", tmp_path / "data", tmp_path / "edited"
    tiny_llava().bfloat16().save_pretrained(base)
    tiny_processor().save_pretrained(base)
    sizes = "--edit_records 1 --test_records 1 --edit_pairs 1 --test_pairs 1"
    assert main(["render", "--out", str(data), *sizes.split()]) == 0
    model = ["--model.name", str(base), "--model.dtype", "bfloat16", "--data.folder", str(data)]
    editor = ["--editor.layers", "[1]", "--editor.lr", "0.001"]
    assert main(["edit", *model, *editor, *QUIET, "--out", str(edited)]) == 0
    delta = EditDelta.load(edited / "edit.safetensors")
    rounding = json.loads(delta.provenance["rounding"])
    text = capsys.readouterr().out
    assert f"{rounding['kept']} of {rounding['changed']} changed weights" in text
    assert "differ after rounding to bfloat16" in text
    assert [(t.dtype, t.shape) for t in delta.tensors.values()] == [("BF16", (32, 48))]
    delta.revert(edited, tmp_path / "reverted")
    assert WeightFiles(tmp_path / "reverted").checksum == WeightFiles(base).checksum
