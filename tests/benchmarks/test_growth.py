from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import growth, processes


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, ...]]:
    """Sizes for a model with three layers."""
    sizes: dict[str, tuple[int, ...]] = {"records": (1, 3), "layers": (1, 2), "tokens": (4, 9)}
    for kind, values in sizes.items():
        monkeypatch.setattr(growth, kind.upper(), values)
    monkeypatch.setattr(growth, "LAYER", 1)
    return sizes


@pytest.mark.slow
def test_measure_and_draw(
    checkpoint: Path, tmp_path: Path, sizes: dict[str, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["growth", "--out", str(tmp_path), "--model", str(checkpoint), "--steps", "2"]
    monkeypatch.setattr(sys, "argv", [*words, "--only", *sizes])
    growth.main()
    figures = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))
    assert {kind: tuple(point["size"] for point in figure["points"]) for kind, figure in figures.items()} == sizes
    for kind, figure in figures.items():
        assert all(point["plain"] > 0 and point["fast"] > 0 for point in figure["points"])
        assert Image.open(tmp_path / f"growth-{kind}.png").size[0] > 300
    printed = capsys.readouterr().out
    assert printed.count("| plain | fast | ratio |") == len(sizes)

    (tmp_path / "growth-tokens.png").unlink()
    monkeypatch.setattr(growth, "KINDS", {})
    monkeypatch.setattr(sys, "argv", [*words, "--draw"])
    growth.main()
    assert capsys.readouterr().out == printed
    assert (tmp_path / "growth-tokens.png").is_file()


@pytest.mark.slow
def test_two_processes_find_the_same_gate(checkpoint: Path) -> None:
    words = ["--model", str(checkpoint), "--layer", "1", "--records", "3", "--steps", "2"]
    args = processes.processes_parser("").parse_args(words)
    (seconds_one, gate_one), (seconds_two, gate_two) = (processes.run(args, count) for count in (1, 2))
    assert min(seconds_one, seconds_two) > 0
    assert processes.same_rates(gate_two, gate_one)
