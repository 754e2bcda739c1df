"""The gates of `neuralgate edit`: positions, rows, columns, the paper's preset, and what does not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace
from safetensors.torch import load_file

from lightning_neuralgate.cli import main
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.gate.columns import ColumnGate
from lightning_neuralgate.gate.neural_gate import NeuralGate
from tests.cli.test_cli import QUIET, data  # noqa: F401  a fixture


def test_every_gate_can_be_chosen(
    checkpoint: Path,
    data: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common, gate = ["--model.name", str(checkpoint), "--data.folder", str(data), *QUIET], tmp_path / "gate"
    locator = ["--locator.layers", "[1]", "--locator.max_steps", "2"]
    assert main(["locate", *common, *locator, "--columns", "true", "--out", str(gate)]) == 0
    assert "ColumnGate(LlavaForConditionalGeneration, 5.0 % open; layer 1: 48 columns)" in capsys.readouterr().out
    columns = ColumnGate.from_pretrained(gate).with_share(0.25)
    assert columns.contrasts(1).any()

    runs = {
        "columns": ["--columns", str(gate), "--columns_share", "0.25", "--scope", "divergence"],
        "conflict": ["--rows", "conflict", "--scope", "all"],
        "paper": ["--preset", "paper", "--gate", str(gate), "--tau", "0.4", "--editor.steps_per_pair", "2"],
    }
    records = {}
    for name, options in runs.items():
        edit = ["edit", *common, "--editor.layers", "[1]", "--editor.lr", "0.01", "--trainer.limit_val_batches", "0"]
        assert main([*edit, *options, "--out", str(tmp_path / name)]) == 0
        records[name] = EditDelta.load(tmp_path / name / "edit.safetensors").provenance
    assert {key: records["columns"].get(key) for key in ("gate", "scope", "columns", "preset")} == {
        "gate": None, "scope": "divergence", "columns": str(columns), "preset": None,
    }  # fmt: skip
    assert (records["conflict"]["rows"], records["conflict"]["scope"]) == ("conflict (decay 0.9)", "all")
    assert records["paper"]["gate"] == NeuralGate.from_pretrained(gate).fingerprint
    assert [records["paper"][key] for key in ("preset", "scope", "tau")] == ["paper", "subject_last", "0.4"]
    assert json.loads(records["paper"]["editor"])["schedule"] == "paper"
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "columns"))
    (name,) = EditDelta.load(tmp_path / "columns" / "edit.safetensors").tensors
    changed = (before[name] != after[name]).any(0)
    assert changed.any()
    assert not changed[~columns.mask(1)].any()


@pytest.mark.parametrize("order", ["before", "after", "yaml"])
def test_options_override_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    ran: list[Any] = []
    monkeypatch.setattr("lightning_neuralgate.cli.edit.run", ran.append)
    (tmp_path / "edit.yaml").write_text("preset: paper\neditor: {lr: 0.5}\n")
    preset, lr = ["--preset", "paper"], ["--editor.lr", "0.5"]
    options = {"before": [*lr, *preset], "after": [*preset, *lr], "yaml": ["--config", str(tmp_path / "edit.yaml")]}
    common = ["--editor.layers", "[1]", "--gate", "gate", "--data.folder", "data", "--out", "out"]
    assert main(["edit", *options[order], *common]) == 0
    editor = {name: ran[0].editor[name] for name in ("lr", "schedule", "eps", "steps_per_pair", "stop_loss", "alpha")}
    assert editor == {
        "lr": 0.5, "schedule": "paper", "eps": 1e-3, "steps_per_pair": 10, "stop_loss": 1e-3, "alpha": 1.25,
    }  # fmt: skip
    assert (ran[0].scope, ran[0].tau, ran[0].trainer.max_epochs, ran[0].data.retention) == (
        "subject_last",
        0.3,
        1,
        None,
    )


def test_the_demo_has_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Namespace] = []
    monkeypatch.setattr("lightning_neuralgate.cli.demo.run", ran.append)
    assert main(["demo", "--settings.epochs", "2", "--preset", "paper"]) == 0
    settings = ran[0].settings
    assert (settings.schedule, settings.tau, settings.lr, settings.epochs) == ("paper", 0.3, 1e-5, 2)


def test_gates_that_do_not_go_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        ("--scope all", "--scope all says where rows are masked: give --gate or --rows conflict"),
        ("--preset paper", "--preset paper gates the subject's last token: give --gate"),
        ("--gate g --rows conflict", "leave one of the two out"),
        ("--rows conflict --scope tail", "--scope tail masks none: choose subject_last"),
        ("--gate g --scope divergence", "--scope divergence masks no rows, so --gate is without effect"),
        ("--columns_share 0.1", "give --columns FOLDER"),
        ("--columns g --editor.lora_rank 4", "leave --editor.lora_rank out"),
        ("--columns g --keep k", "both decide which inputs"),
        ("--keep k --editor.projection attention", "--keep is about the MLP's projection"),
    ):
        common = ["edit", "--editor.layers", "[1]", "--data.folder", str(tmp_path), "--out", str(tmp_path / "out")]
        assert main([*common, *options.split()]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
