from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

KEYS = {"seconds_plain", "seconds_fast", "ratio", "agree", "peak_memory_ratio", "floor_share"}
OPTIONS = {
    "locate": "--layer 1 --records 3 --together 2 --steps 3",
    "layers": "--first 0 --layers 2 --steps 3",
    "callback": "--layer 1 --pairs 2",
    "edit": "--layer 1 --batches 2 --steps 2",
    "eval": "--records 3 --batch-size 5 --max-new-tokens 4",
    "pictures": "--records 2 --pairs 2 --epochs 2 --layer 1 --train-steps 1 --photo 60 40",
}
SLOW = ("callback",)
"""Benchmarks that start further processes."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in OPTIONS])
def test_fast_and_plain_agree(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = tmp_path / "results.json"
    words = [name, "--model", str(checkpoint), "--json", str(file), *OPTIONS[name].split()]
    monkeypatch.setattr(sys, "argv", words)
    import_module(f"benchmarks.{name}").main()
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["agree"] is True
    assert results["ratio"] == pytest.approx(results["seconds_plain"] / results["seconds_fast"])
    if name == "pictures":
        assert results["bytes_held"] == 2 * 3 * 16 * 16 * 4, "two pictures of 16 x 16 pixels"
    else:
        assert results.keys() >= KEYS
    assert f"| {'ratio_edit' if name == 'pictures' else 'ratio'} |" in capsys.readouterr().out


def test_table_of_json_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    results = {
        "seconds_plain": 30.0, "seconds_fast": 4.0, "ratio": 7.5, "agree": True, "peak_memory_ratio": 0.25,
        "floor_share": 0.5, "geometry": "smol", "threads": 2,
    }  # fmt: skip
    for name in ("locate-2", "edit-1"):
        (tmp_path / f"{name}.json").write_text(json.dumps(results), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["table", *map(str, sorted(tmp_path.glob("*.json")))])
    import_module("benchmarks.table").main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        f"| {name} | smol | 2 | 30.0 s | 4.0 s | 7.50 | yes | 0.25 | 0.50 |" for name in ("edit", "locate")
    ]
