"""What docs/evaluation.md shows works: its commands parse, its code runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.cli import build_parser
from tests.data.test_data_doc import blocks
from tests.helpers.task_files import mme_folder

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


COMMANDS = [line for block in blocks(PAGE, "bash") for line in block.splitlines() if line.startswith("neuralgate")]


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_parse(command: str) -> None:
    words = shlex.split(command)[1:]
    assert build_parser(words[0]).parse_args(words).subcommand == words[0]


def test_all_evaluation_commands_are_documented() -> None:
    assert {shlex.split(command)[1] for command in COMMANDS} == {"eval", "score", "compare", "edit"}


def test_documented_code_runs(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mme_folder(tmp_path / "MME_Benchmark")
    (code,) = (block for block in blocks(PAGE, "python") if "answer_tasks" in block)
    for shown, here in (
        ("smol-llava", str(checkpoint)),
        ("Trainer(logger=False)", "Trainer(logger=False, accelerator='cpu', enable_progress_bar=False)"),
    ):
        assert shown in code
        code = code.replace(shown, here)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["scores"]["tasks"]["mme"]["n"] == 4
    assert (tmp_path / "base" / "answers.jsonl").is_file()
