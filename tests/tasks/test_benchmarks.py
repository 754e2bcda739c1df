"""A benchmark is one class: a toy one, defined here, goes through the full path without other changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_neuralgate.cli import main
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.metrics.functional.tally import Tally, share, unstratified
from lightning_neuralgate.tasks.answer_store import read_answered
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS
from lightning_neuralgate.tasks.benchmarks.base import Benchmark, TallySettings, right_or_wrong
from lightning_neuralgate.tasks.exports import export_results
from lightning_neuralgate.tasks.item import BrokenItems, TaskItem
from lightning_neuralgate.tasks.options import task_names
from lightning_neuralgate.tasks.questions import Source
from tests.helpers.task_files import picture_bytes

QUIET = ["--max_new_tokens", "3", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


class ToyTally:
    def __init__(self) -> None:
        self.rows: dict[str, tuple[float, float]] = {}

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        for answer in answers:
            self.rows[answer.item_id] = (float(answer.truth in answer.answer), 1.0)

    def tally(self) -> Tally | None:
        rows = np.array([row for _, row in sorted(self.rows.items())])
        return unstratified(rows, lambda sums: {"hits": share(sums[..., 0, 0], sums[..., 0, 1])}, {"hits": (0,)})


class Toy(Benchmark):
    """Does the answer contain a letter?"""

    name = "toy"
    protocol = "the toy's rule"
    shown = ("hits",)
    has_export = True

    def source(self, options: Any, data: DataOptions) -> Source:
        def read(broken: BrokenItems) -> Iterator[TaskItem]:
            for number, letter in enumerate("aeioust"):
                yield TaskItem(
                    "toy", str(number), picture_bytes(number), "a.png", f"Say {letter}!", letter, group=letter
                )

        return read

    def new_tally(self, settings: TallySettings) -> ToyTally:
        return ToyTally()

    def missing_parts(self, figures: Any) -> list[str]:
        return ["the other half"]

    def verdict(self, answer: AnsweredItem) -> str:
        return right_or_wrong(answer.truth in answer.answer)

    def export(self, answer: AnsweredItem) -> Iterator[tuple[Path, str]]:
        yield Path("toy") / "answers.txt", f"{answer.truth}\t{answer.answer}"


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "toy", Toy())


def test_a_toy_benchmark_is_read_answered_scored_compared_and_exported(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, more in ((first, ["--limit", "5"]), (second, ["--limit", "5", "--sample", "true"])):
        assert (
            main(["eval", "--tasks", "toy", "--model.name", str(checkpoint), "--out", str(folder), *more, *QUIET]) == 0
        )
    printed = capsys.readouterr().out
    assert "toy: the toy's rule" in printed
    assert "Resampled for the intervals: 5 items of toy." in printed
    assert "toy: no answers of the other half" in printed
    answers = list(read_answered(first))
    hits = [answer.truth in answer.answer for answer in answers]
    row = json.loads((first / "scores.json").read_text())["tasks"]["toy"]
    assert (row["figures"], row["n"], row["missing"]) == ({"hits": sum(hits) / 5}, 5, ["the other half"])
    assert main(["score", str(first), "--export", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "toy" / "answers.txt").read_text().count("\n") == 5
    assert export_results(first, tmp_path / "again") == [tmp_path / "again" / "toy" / "answers.txt"]
    assert main(["compare", str(first), str(second), "--out", str(tmp_path / "compared")]) == 0
    compared = json.loads((tmp_path / "compared" / "compare.json").read_text())["tasks"]["toy"]
    assert compared["figures"]["hits"]["first"] == sum(hits) / 5
    assert "toy" in task_names("all")


def test_every_benchmark_describes_itself() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.protocol
        assert benchmark.shown
        assert benchmark.has_export == (type(benchmark).export is not Benchmark.export)
