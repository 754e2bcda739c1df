"""The benchmarks on a tiny checkpoint: both sides run, agree, and leave the promised keys."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

KEYS = {"seconds_plain", "seconds_fast", "ratio", "agree", "peak_memory_ratio", "floor_share"}
OPTIONS = {
    "locate": "--layer 1 --records 3 --together 2 --steps 3",
    "layers": "--first 0 --layers 2 --steps 3",
    "eval": "--records 3 --batch-size 5 --max-new-tokens 4",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_fast_and_plain_agree(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = tmp_path / "results.json"
    words = [name, "--model", str(checkpoint), "--json", str(file), *OPTIONS[name].split()]
    monkeypatch.setattr(sys, "argv", words)
    import_module(f"benchmarks.{name}").main()
    told = json.loads(file.read_text(encoding="utf-8"))
    assert told.keys() >= KEYS
    assert told["agree"] is True
    assert told["ratio"] == pytest.approx(told["seconds_plain"] / told["seconds_fast"])
    assert "| ratio |" in capsys.readouterr().out


def test_pictures_kept_or_not_make_the_same_edit(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    words = "--records 2 --pairs 2 --epochs 2 --layer 1 --train-steps 1 --photo 60 40"
    monkeypatch.setattr(sys, "argv", ["pictures", "--model", str(checkpoint), "--json", str(file), *words.split()])
    import_module("benchmarks.pictures").main()
    told = json.loads(file.read_text(encoding="utf-8"))
    assert told["agree"] is True
    assert told["bytes_held"] == 2 * 3 * 16 * 16 * 4, "of two pictures, 16 by 16 as the model takes them"
    assert told["ratio"] == pytest.approx(told["seconds_plain"] / told["seconds_fast"])
    assert "| ratio_edit |" in capsys.readouterr().out
