"""Several processes that share the work of a workbench, each with a model and threads of its own.

On a CPU the steps of stage 1, and of an answer, run products with few rows, which a second thread speeds up little.
Two processes of one thread are nearly twice as fast as one (`python -m benchmarks.processes`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.demo.experiment import EditSettings, Experiment
from lightning_neuralgate.runtime.process import silence_expected_warnings

Result = TypeVar("Result")

_bench: Experiment | None = None
"""The workbench of a process that helps."""


class WorkerPool:
    """Runs tasks on a workbench: here, or in processes that have one like it each.

    What comes out is the same, to the bits in which numbers of threads differ.

    Args:
        bench: the workbench. Its records and targets are handed on with each task.
        processes: how many share the work. With 1 all runs here; with more, the model stands here and in each of them.
    """

    def __init__(self, bench: Experiment, processes: int = 1) -> None:
        if processes < 1:
            raise ValueError(f"processes must be at least 1, got {processes}")
        self.bench, self.processes = bench, processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.processes > 1:
            self._pool = ProcessPoolExecutor(
                self.processes,
                multiprocessing.get_context("spawn"),
                _begin,
                (
                    self.bench.out,
                    self.bench.seed,
                    self.bench.settings,
                    max(1, torch.get_num_threads() // self.processes),
                ),
            )
            # they load their models while other things are done here
            for _ in range(self.processes):
                self._pool.submit(os.getpid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def share(self, task: Callable[..., Result], shares: Sequence[tuple[Any, ...]]) -> list[Result]:
        """`task(workbench, *share)` for each share; those that run side by side show the progress of the first.

        Args:
            task: a function at the top of a module.
            shares: its other arguments, which can be pickled.
        """
        if self._pool is None:
            return [task(self.bench, *share) for share in shares]
        splits, retention = self.bench.splits, self.bench.retention
        waiting = [
            self._pool.submit(_work, task, splits, retention, index % self.processes == 0, share)
            for index, share in enumerate(shares)
        ]
        return [future.result() for future in waiting]


def _begin(out: Path, seed: int, settings: EditSettings, threads: int) -> None:
    global _bench
    _end_with_parent()
    silence_expected_warnings()
    torch.set_num_threads(threads)
    _bench = Experiment(out, seed, settings)


def _end_with_parent() -> None:
    """Neither Ctrl-C nor the parent's sudden end leaves a process that works for nobody."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _work(
    task: Callable[..., Result],
    splits: RecordSplits,
    retention: list[RetentionItem],
    shows_progress: bool,
    share: tuple[Any, ...],
) -> Result:
    assert _bench is not None
    _bench.splits, _bench.retention, _bench.shows_progress = splits, retention, shows_progress
    return task(_bench, *share)
