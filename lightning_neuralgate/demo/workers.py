"""A pool of worker processes that share the work of an experiment.

On a CPU, stage 1 and token-by-token generation multiply matrices with few rows, which a second thread speeds up little. Two
processes of one thread each are nearly twice as fast as one process (`python -m benchmarks.processes`).
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

_experiment: Experiment | None = None
"""The experiment of this worker process; None in the main process.

A global is the only way to hand an object from the initializer of a `ProcessPoolExecutor` to its tasks. Only `_start_worker`
sets it and only `_run_task` reads it; tasks receive the experiment as their first argument.
"""


class WorkerPool:
    """Run tasks on an experiment, in this process or in worker processes with an experiment of their own each.

    Results are the same for every number of processes, up to the rounding that depends on the number of threads.

    Args:
        experiment: its records and targets are sent along with each task.
        processes: number of processes. With 1, tasks run in this process. With more, each worker loads the model, in
            addition to the one in this process.
    """

    def __init__(self, experiment: Experiment, processes: int = 1) -> None:
        if processes < 1:
            raise ValueError(f"processes must be at least 1, got {processes}")
        self.experiment, self.processes = experiment, processes
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.processes > 1:
            experiment = self.experiment
            threads = max(1, torch.get_num_threads() // self.processes)
            self._executor = ProcessPoolExecutor(
                self.processes,
                multiprocessing.get_context("spawn"),
                _start_worker,
                (experiment.out, experiment.seed, experiment.settings, threads),
            )
            # start the workers now, so that they load their models while this process renders records
            for _ in range(self.processes):
                self._executor.submit(os.getpid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def starmap(self, task: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> list[Result]:
        """Return `task(experiment, *args)` for each tuple of arguments, in order.

        Of the tasks that run at the same time, only the first shows progress bars.

        Args:
            task: a module-level function, or a method of `Experiment`.
            arguments: picklable.
        """
        if self._executor is None:
            return [task(self.experiment, *args) for args in arguments]
        splits, retention = self.experiment.splits, self.experiment.retention
        futures = [
            self._executor.submit(_run_task, task, splits, retention, index % self.processes == 0, args)
            for index, args in enumerate(arguments)
        ]
        return [future.result() for future in futures]


def _start_worker(out: Path, seed: int, settings: EditSettings, threads: int) -> None:
    global _experiment
    exit_with_parent()
    silence_expected_warnings()
    torch.set_num_threads(threads)
    _experiment = Experiment(out, seed, settings)


def exit_with_parent() -> None:
    """Leave no orphaned worker behind after Ctrl-C or when the parent process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_task(
    task: Callable[..., Result],
    splits: RecordSplits,
    retention: list[RetentionItem],
    show_progress: bool,
    arguments: tuple[Any, ...],
) -> Result:
    assert _experiment is not None
    _experiment.splits, _experiment.retention, _experiment.show_progress = splits, retention, show_progress
    return task(_experiment, *arguments)
