"""Command-line options for the sources of each benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS
from lightning_neuralgate.tasks.benchmarks.base import Benchmark
from lightning_neuralgate.tasks.questions import Source

ALL = "all"

if TYPE_CHECKING:
    _SOURCE_OPTIONS: tuple[type, ...] = ()
else:
    _SOURCE_OPTIONS = tuple(
        benchmark.source_options for benchmark in BENCHMARKS.values() if benchmark.source_options is not None
    )


@dataclass(frozen=True)
class TaskSources(*_SOURCE_OPTIONS):  # type: ignore[misc]  # each benchmark brings its own fields
    """Where the questions of each task are: files, folders, or datasets on the hub.

    Data sets are `owner/name`, `owner/name:split` or `owner/name/config:split`. PrivacyPair is given by `--data`.
    """

    def read(self, tasks: Sequence[str], data: DataOptions) -> dict[str, Source]:
        """Return the readers of some tasks.

        Args:
            tasks: their names.
            data: where PrivacyPair is.

        Raises:
            DataFormatError: a task whose source is not given.
        """
        return {task: BENCHMARKS[task].source(self, data) for task in tasks}


def benchmark_of_option(group: str, name: str) -> Benchmark | None:
    """Return the benchmark that `--sources.NAME` or `--data.NAME` belongs to; None for other groups."""
    for benchmark in BENCHMARKS.values():
        own = benchmark.source_options and {field.name for field in fields(benchmark.source_options)}
        if (group == "data" and benchmark.uses_data_options) or (group == "sources" and own and name in own):
            return benchmark
    return None


def mini_sources(folder: Path) -> tuple[TaskSources, DataOptions]:
    """Return the sources of the mini sets that `render_mini` has drawn into a folder."""
    sources = {
        name: value
        for task, benchmark in BENCHMARKS.items()
        for name, value in benchmark.mini_sources(folder / task).items()
    }
    return TaskSources(**sources), DataOptions(folder=folder / "privacy_pair")


def task_names(named: str | Sequence[str]) -> list[str]:
    """Return the tasks in a list or in comma-separated words; `all` stands for all that have a drawn set.

    Raises:
        DataFormatError: an unknown task, or none.

    Example:
        >>> task_names("pope,mme")
        ['pope', 'mme']
    """
    words = named.split(",") if isinstance(named, str) else list(named)
    names = [word.strip() for word in words if word.strip()]
    if names == [ALL]:
        return [name for name, benchmark in BENCHMARKS.items() if benchmark.has_mini]
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise DataFormatError(f"there is no task '{unknown[0]}'; there are {', '.join(BENCHMARKS)}, or {ALL}")
    if not names:
        raise DataFormatError(f"name the tasks: {', '.join(BENCHMARKS)}, or {ALL}")
    return list(dict.fromkeys(names))
