"""`neuralgate keys`, `edit --keep` and `project` on a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from lightning_neuralgate.cli import main
from lightning_neuralgate.data.retention import render_retention
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.gate.keys import InputCovariance
from tests.cli.test_cli import QUIET, data  # noqa: F401  a fixture


def test_keys_edit_and_project(
    checkpoint: Path,
    data: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys, edited, free, projected = (tmp_path / name for name in ("keys", "edited", "free", "projected"))
    (tmp_path / "prompts.txt").write_text("Hello there.\n\nWhat is a bicycle?\n")
    render_retention(tmp_path / "questions", 0, "open", 3)
    model = ["--model.name", str(checkpoint), *QUIET]
    sources = [
        "--data.folder", str(data), "--plain", "3", "--prompts",
        f"[{tmp_path / 'prompts.txt'}, {tmp_path / 'questions' / 'retention.jsonl'}]",
    ]  # fmt: skip
    assert main(["keys", *model, "--layers", "[1]", *sources, "--out", str(keys)]) == 0
    assert "layer 1: of 48 input directions" in capsys.readouterr().out
    covariance = InputCovariance.from_pretrained(keys)
    benign = 3 * 2  # three subjects with one edit record and two pairs each
    assert (covariance.layers, covariance.prompts) == ([1], benign + 3 + 2 + 3)

    edit = ["edit", *model, "--data.folder", str(data), "--editor.layers", "[1]", "--editor.lr", "0.01"]
    edit += ["--trainer.limit_val_batches", "0"]
    assert main([*edit, "--keep", str(keys), "--keep_share", "0.8", "--out", str(edited)]) == 0
    assert EditDelta.load(edited / "edit.safetensors").provenance["keep"] == f"{covariance.fingerprint}, share 0.8"
    assert main([*edit, "--out", str(free)]) == 0
    capsys.readouterr()
    project = ["project", str(free), "--base", str(checkpoint), "--keep", str(keys)]
    assert main([*project, "--share", "0.8", "--out", str(projected)]) == 0
    assert "% of the change kept (squared norm; " in capsys.readouterr().out

    before = load_file(checkpoint / "model.safetensors")
    (name,) = EditDelta.load(free / "edit.safetensors").tensors
    directions = covariance.projector(1, share=0.8).directions
    removed = {}
    for folder in (edited, free, projected):
        change = load_file(folder / "model.safetensors")[name] - before[name]
        assert float(change.norm()) > 0
        removed[folder.name] = float((change @ directions).norm() / change.norm())
    assert max(removed["edited"], removed["projected"]) < 1e-4 < 0.1 < removed["free"]

    for arguments, message in (
        (["keys", *model, "--layers", "[1]", "--out", str(tmp_path / "none")], "there are no prompts: give --prompts"),
        (["keys", *model, "--layers", "[1]", "--prompts", f"[{tmp_path / 'no.txt'}]", "--out", str(tmp_path / "none")],
         "no.txt cannot be read"),
        ([*project, "--out", str(keys / "inside")], "lies in --keep"),
    ):  # fmt: skip
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
