"""The commands of `gpu_check.sh` exist and parse, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_summary, measure
from lightning_neuralgate.cli import build_parser

ROOT = Path(__file__).parents[2]


class Parsed(Exception):
    """Ends a benchmark once its options are parsed."""


@pytest.fixture(scope="module")
def commands() -> dict[str, list[str]]:
    """Module -> its arguments, of the commands that the script prints."""
    finished = subprocess.run(
        ["bash", "benchmarks/gpu_check.sh", "some folder"], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "DRY_RUN": "1", "PYTHON": "python"},
    )  # fmt: skip
    printed = [line.removeprefix("+ ").replace("some folder", "'some folder'") for line in finished.stdout.splitlines()]
    words = [shlex.split(line) for line in printed]
    assert words[0] == ["mkdir", "-p", "some folder"]
    assert not (ROOT / "some folder").exists(), "nothing runs"
    assert all(line[:2] == ["python", "-m"] for line in words[1:])
    return {line[2]: line[3:] for line in words[1:]}


def test_benchmarks_parse(commands: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def stop(*options: Any) -> None:
        loaded.append(options)
        raise Parsed

    monkeypatch.setattr(measure, "load_geometry", stop)
    written = []
    for name in ("locate", "edit", "memory"):
        words = commands[f"benchmarks.{name}"]
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(Parsed):
            import_module(f"benchmarks.{name}").main()
        written.append(Path(words[words.index("--json") + 1]).name)
    assert [geometry for geometry, *_ in loaded] == ["llava-1.5-7b"] * 3
    assert written == [f"{name}.json" for name in gpu_summary.FIGURES], "the files that the summary reads"


def test_other_commands_parse(commands: dict[str, list[str]]) -> None:
    words = commands["lightning_neuralgate.cli"]
    assert build_parser(words[0]).parse_args(words).subcommand == "demo"
    assert commands["benchmarks.gpu_summary"] == ["some folder"]
    assert [ROOT / word for word in commands["pytest"] if word.endswith(".py")] == [ROOT / "tests" / "test_gpu.py"]
    assert "pytestmark = [pytest.mark.gpu" in (ROOT / "tests" / "test_gpu.py").read_text(encoding="utf-8")


def test_summary(tmp_path: Path) -> None:
    for name, keys in gpu_summary.FIGURES.items():
        results = {**dict.fromkeys(keys, 2.5), "geometry": "llava-1.5-7b"}
        (tmp_path / f"{name}.json").write_text(json.dumps(results), encoding="utf-8")
    gpu_summary.main([str(tmp_path)])
    figures = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert figures["locate.ratio"] == figures["memory.edit_gb"] == 2.5
    assert "card" in figures
    assert len(figures) == 2 + sum(map(len, gpu_summary.FIGURES.values()))
