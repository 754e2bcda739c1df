"""`benchmarks.models`: its cells are checks that can fail, and the document shows what it prints."""

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


def test_the_whole_job_on_minigpt4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.main(["--only", "minigpt4", "minigpt4_qformer", "--json", str(tmp_path / "table.json")])
    rows = json.loads((tmp_path / "table.json").read_text())
    assert rows == {family: dict.fromkeys(models.COLUMNS, "yes") for family in ("minigpt4", "minigpt4_qformer")}
    printed = capsys.readouterr().out
    assert all(line in DOCUMENT.read_text() for line in printed.splitlines() if line.startswith("|"))


@pytest.mark.slow
def test_the_document_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    models.main([])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 2 + len(CHECKPOINTS)
    assert "\n".join(printed) in DOCUMENT.read_text()


def test_a_broken_part_is_not_called_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_checkpoint("minigpt4")
    monkeypatch.setattr(models, "tiny_checkpoint", lambda family: (model, processor))
    other = find_decoder(model).output_projection(0)

    def also_changes_another(self: object, *arguments: object, **options: object) -> None:
        with torch.no_grad():
            other.weight.add_(1)  # type: ignore[union-attr, operator]

    monkeypatch.setattr(models.NeuralGateCallback, "on_train_end", also_changes_another)
    row = models.tried("minigpt4", tmp_path)
    assert row["locate"] == "yes"
    assert "layers.0.mlp.down_proj.weight" in row["edit"]
    assert row["edit"].startswith("no: AssertionError")
    assert "eval" not in row


def test_a_family_without_a_decoder_is_said_so(tmp_path: Path) -> None:
    model, processor = tiny_checkpoint("minigpt4")
    job = models.Job(model, processor, tiny_splits(tmp_path), tmp_path)
    with pytest.raises(AssertionError, match="nothing was located"):
        job.edit()
