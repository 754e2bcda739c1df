"""Answers in the formats of the benchmarks' own tools, so that others can verify the figures."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.tasks.answer_store import read_answered
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS, benchmark_of


def export_results(answers: Path, out: Path) -> list[Path]:
    """Write the answers as the benchmarks' own tools read them, see `Benchmark.export`; others are skipped.

    Args:
        answers: the file, or the folder with `answers.jsonl`.
        out: the folder to write to.

    Returns:
        The files.

    Raises:
        DataFormatError: no answer has an export format, or the answers cannot be read; naming the item: a missing field, or
            an unknown subtask or category, which would become a file name; a link in `out` that leads out of it.
    """
    exported = [task for task, benchmark in BENCHMARKS.items() if benchmark.has_export]
    for task in exported:
        if not (out / task).resolve().is_relative_to(out.resolve()):
            raise DataFormatError(f"{out / task} is a link that leads out of {out}; name another folder, or remove it")
    with atomic_write(out.resolve()) as draft:
        draft.mkdir()
        with ExitStack() as stack:
            files: dict[Path, TextIO] = {}
            for answer in read_answered(answers):
                for name, line in benchmark_of(answer).export(answer):
                    if name not in files:
                        (draft / name).parent.mkdir(exist_ok=True)
                        files[name] = stack.enter_context((draft / name).open("w", encoding="utf-8", newline="\n"))
                    files[name].write(line + "\n")
        if not files:
            raise DataFormatError(
                f"{answers} holds no answers to {' or '.join(exported)}, so there is nothing to export"
            )
    return sorted(out / name for name in files)
