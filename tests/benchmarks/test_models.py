"""The compatibility table: cells can fail, and docs/models.md shows the current table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import models
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_checkpoints import CHECKPOINTS, tiny_checkpoint
from tests.helpers.tiny_llava import tiny_splits

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


def test_workflow_on_minigpt4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.main(["--only", "minigpt4", "minigpt4_qformer", "--json", str(tmp_path / "table.json")])
    rows = json.loads((tmp_path / "table.json").read_text())
    assert rows == {family: dict.fromkeys(models.COLUMNS, "yes") for family in ("minigpt4", "minigpt4_qformer")}
    printed = capsys.readouterr().out
    assert all(line in DOCUMENT.read_text() for line in printed.splitlines() if line.startswith("|"))


@pytest.mark.slow
def test_document_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    models.main([])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 2 + len(CHECKPOINTS)
    assert "\n".join(printed) in DOCUMENT.read_text()


def test_failing_check_is_not_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_checkpoint("minigpt4")
    monkeypatch.setattr(models, "tiny_checkpoint", lambda family: (model, processor))
    other = find_decoder(model).output_projection(0)

    def change_another_weight(self: object, *arguments: object, **options: object) -> None:
        with torch.no_grad():
            other.weight.add_(1)  # type: ignore[union-attr, operator]

    monkeypatch.setattr(models.NeuralGateCallback, "on_train_end", change_another_weight)
    row = models.run_family("minigpt4", tmp_path)
    assert row["locate"] == "yes"
    assert "layers.0.mlp.down_proj.weight" in row["edit"]
    assert row["edit"].startswith("no: AssertionError")
    assert "eval" not in row


def test_edit_without_gate_raises(tmp_path: Path) -> None:
    model, processor = tiny_checkpoint("minigpt4")
    workflow = models.Workflow(model, processor, tiny_splits(tmp_path), tmp_path)
    with pytest.raises(AssertionError, match="nothing was located"):
        workflow.edit()
