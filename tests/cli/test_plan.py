"""`neuralgate plan` on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_neuralgate.cli import main
from lightning_neuralgate.cli import plan as command


@pytest.fixture
def config_only(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "config-only"
    folder.mkdir()
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    return folder


def test_plan_needs_the_config_alone(config_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    options = ["--model.name", str(config_only), "--rate", "1e9", "--editor.layers", "[1]", "--out", str(out)]
    assert main(["plan", *options]) == 0
    text = capsys.readouterr().out
    assert "4 tokens per picture, 44 per query; 15 records, 60 query pairs" in text
    assert (
        f"neuralgate edit --model.name {config_only} --model.dtype float32 --data.folder data --editor.layers '[1]'"
        in text
    )
    content = json.loads(out.read_text())
    figures = content["precisions"]["float32"]
    assert content["layers"] == [1]
    assert figures["fits"]
    assert figures["seconds_per_pair"] == pytest.approx(figures["flops_per_pair"] / 0.5e9)
    assert figures["seconds_edit"] == pytest.approx(60 * figures["seconds_per_pair"])
    assert figures["peak"] == max(figures["locate"]["peak"], figures["edit"]["peak"])


def test_what_does_not_fit_is_said(
    config_only: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_device", lambda device: ("a small card", 1e6))
    assert main(["plan", "--model.name", str(config_only), "--rate", "1e9"]) == 0
    text = capsys.readouterr().out
    assert "no precision fits: nf4 needs" in text
    assert "neuralgate edit" not in text


def test_the_smallest_loss_of_precision_that_fits_is_proposed(
    config_only: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.name", str(config_only), "--rate", "1e9", "--out", str(tmp_path / "plan.json")]
    assert main(["plan", *options]) == 0
    peaks = {
        name: each["peak"] for name, each in json.loads((tmp_path / "plan.json").read_text())["precisions"].items()
    }
    assert peaks["float32"] > peaks["bfloat16"] == peaks["float16"] > peaks["int8"] > peaks["nf4"]
    monkeypatch.setattr(command, "_device", lambda device: ("a card", (peaks["nf4"] + peaks["int8"]) / 2))
    capsys.readouterr()
    assert main(["plan", *options]) == 0
    assert "--model.dtype bfloat16 --model.quantize nf4 --data.folder data" in capsys.readouterr().out


def test_a_layer_that_is_not_there_is_refused(config_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model.name", str(config_only), "--rate", "1e9", "--editor.layers", "[3]"]) == 1
    assert "there is no layer 3; the model has layers 0 to 2" in capsys.readouterr().err
