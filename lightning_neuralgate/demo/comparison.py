"""Compare methods of editing on one model: the same training records, as many tries, and one look at the test data.

1. Each method is fitted with its `tries` on seed 0, and measured on validation records and on ordinary questions that no test
   has. The best try (`best_try`) are its tuned settings.
2. With its own defaults ("default") and the tuned settings ("tuned") it is fitted and measured on test data, with all seeds.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_neuralgate.demo.measured import MeasuredExperiment, best_try
from lightning_neuralgate.demo.workers import exit_with_parent
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.methods import METHODS, FittedMethod, Method, MethodData, WeightEdit
from lightning_neuralgate.runtime.cost import measure
from lightning_neuralgate.runtime.process import silence_expected_warnings
from lightning_neuralgate.runtime.shared_jobs import SharedJobs

DEFAULT, TUNED = "default", "tuned"
UNEDITED = "unedited"
RESULTS_FOLDER = "results"


class Job(NamedTuple):
    """One fit and its measurement.

    Attributes:
        stage: `validation` or `test`.
        seed: seed of the data and of the fit.
        method: name of the method, or "unedited".
        settings: number of the try, or "default" or "tuned".
    """

    stage: str
    seed: int
    method: str
    settings: str = DEFAULT

    @classmethod
    def parse(cls, name: str) -> Job:
        """Return the job of a name."""
        stage, seed, method, settings = name.split("/")
        return cls(stage, int(seed.removeprefix("seed-")), method, settings)

    @property
    def name(self) -> str:
        """Name of the result."""
        return f"{self.stage}/seed-{self.seed}/{self.method}/{self.settings}"


@dataclass(frozen=True)
class Comparison:
    """A comparison in a folder, from which an interrupted one resumes.

    Args:
        out: the folder.
        methods: names of methods, see `METHODS`.
        seeds: number of seeds, from 0 on.
        options: settings of rendering and measuring that differ from those of `EditSettings`, such as `model`.
        tuned: also fit with tuned settings; False for the defaults only, without a validation stage.

    Raises:
        UnsupportedSetupError: there is no such method.
    """

    out: Path
    methods: Sequence[str]
    seeds: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    tuned: bool = True

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.methods) - METHODS.keys()):
            raise UnsupportedSetupError(f"there is no method '{unknown[0]}'; there are {', '.join(METHODS)}")

    @cached_property
    def results(self) -> SharedJobs:
        """The results of jobs, by name."""
        return SharedJobs(self.out / RESULTS_FOLDER)

    def result(self, job: Job) -> dict[str, Any] | None:
        """Return the result of a job; None if it is not finished."""
        return self.results.result(job.name)

    def tries(self, method: str) -> list[Job]:
        """Return the validation jobs of a method."""
        return [Job("validation", 0, method, str(number)) for number in range(len(METHODS[method]().variants()))]

    def tuned_try(self, method: str) -> int | None:
        """Return the number of a method's best try; None while tries are missing."""
        found = [self.result(job) for job in self.tries(method)]
        results = [result for result in found if result is not None]
        return best_try(results) if len(results) == len(found) else None

    def fitted_as(self, job: Job) -> Method | None:
        """Return the method with the settings of a job; None while these are not known."""
        method = METHODS[job.method]()
        if job.settings == DEFAULT:
            return method
        number = self.tuned_try(job.method) if job.settings == TUNED else int(job.settings)
        return None if number is None else method.variants()[number]

    def jobs(self) -> Iterator[Job]:
        """Yield the jobs that can be made now, in their order."""
        if self.tuned:
            for number in range(max((len(self.tries(method)) for method in self.methods), default=0)):
                yield from (job for method in self.methods for job in self.tries(method)[number : number + 1])
        for seed in range(self.seeds):
            yield Job("test", seed, UNEDITED)
            yield from (Job("test", seed, method) for method in self.methods)
            if self.tuned:
                tuned = [Job("test", seed, method, TUNED) for method in self.methods]
                # the defaults may be the best try: then they are not fitted twice
                yield from (job for job in tuned if self.fitted_as(job) not in (None, METHODS[job.method]()))

    def run(self, processes: int = 1) -> None:
        """Make all jobs, with several processes of one share of the threads each.

        Raises:
            RuntimeError: a process failed; its output says why.
        """
        if processes == 1:
            ComparisonWorker(self, 0).run()
            return
        context = multiprocessing.get_context("spawn")
        threads = max(1, torch.get_num_threads() // processes)
        workers = [context.Process(target=_work, args=(self, number, threads)) for number in range(processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError("a process of the comparison failed; start the same command again to go on")


class ComparisonWorker:
    """A process that makes jobs of a comparison."""

    def __init__(self, comparison: Comparison, number: int) -> None:
        self.comparison, self.number = comparison, number
        self._experiment: MeasuredExperiment | None = None
        self._data: MethodData | None = None
        self._seconds: list[float] = []

    def run(self) -> None:
        """Make jobs until none is left."""
        self.comparison.results.run(lambda: (job.name for job in self.comparison.jobs()), self._make)

    def _make(self, name: str) -> dict[str, Any]:
        job = Job.parse(name)
        start = time.perf_counter()
        result = self._measured(job)
        self._seconds.append(time.perf_counter() - start)
        left = sum(not self.comparison.results.file(other.name).is_file() for other in self.comparison.jobs()) - 1
        hours = left * sum(self._seconds) / len(self._seconds) / 3600
        print(f"{name}: {self._seconds[-1]:.0f} s; {left} more, about {hours:.1f} h of one process", flush=True)
        return {**job._asdict(), **result, "job_seconds": self._seconds[-1]}

    def _measured(self, job: Job) -> dict[str, Any]:
        experiment, data = self._prepared(job)
        before = experiment.unedited  # answers with the unedited weights
        if job.method == UNEDITED:
            return {**before, "attacks": experiment.attack(UNEDITED)}
        method = self.comparison.fitted_as(job)
        assert method is not None
        with measure() as cost:
            fitted = method.fit(experiment.model, data)
        name = f"{job.method}-{job.settings}"
        with fitted.applied(experiment.model):
            processor, experiment.processor = experiment.processor, fitted.prompted(experiment.processor)
            try:
                figures = experiment.measure(name)
                if job.stage == "test":
                    figures["attacks"] = experiment.attack(name)
            finally:
                experiment.processor = processor
        return {
            **figures, "method_settings": dict(fitted.settings), "report": dict(fitted.report), "seconds": cost.seconds,
            "peak_memory": cost.peak_memory, "artifact_bytes": artifact_bytes(fitted, experiment.model),
        }  # fmt: skip

    def _prepared(self, job: Job) -> tuple[MeasuredExperiment, MethodData]:
        validation = job.stage == "validation"
        found = self._experiment
        if found is None or self._data is None or (found.validation, found.seed) != (validation, job.seed):
            self._experiment = self._data = None  # one model in memory
            folder = self.comparison.out / job.stage / f"seed-{job.seed}" / f"process-{self.number}"
            found = MeasuredExperiment(folder, job.seed, dict(self.comparison.options), validation)
            found.prepare()
            self._experiment, self._data = found, method_data(found)
        return found, self._data


def method_data(experiment: MeasuredExperiment) -> MethodData:
    """Return the training data that every method gets: the edit records, and retention questions in all forms."""
    data = MethodData.prepare(
        experiment.model,
        experiment.processor,
        experiment.splits.edit,
        experiment.retention_sets["all"],
        experiment.settings.layer,
        seed=experiment.seed,
        trainer={"precision": experiment.precision},
    )
    return replace(data, covariance=data.input_covariance(experiment.model, range(experiment.settings.layer + 1)))


def artifact_bytes(fitted: FittedMethod, model: nn.Module) -> int:
    """Return the bytes that a fitted method adds to the model's files: changed rows of weights, or a steering's tensors."""
    if not isinstance(fitted, WeightEdit):
        return sum(value.nbytes for value in getattr(fitted, "tensors", dict)().values())
    parameters = dict(model.named_parameters())
    total = 0
    for name, value in fitted.weights.items():
        changed = (value != parameters[name].detach().cpu()).reshape(len(value), -1).any(1)
        total += int(changed.sum()) * value[0].numel() * value.element_size()
    return total


def _work(comparison: Comparison, number: int, threads: int) -> None:
    exit_with_parent()
    silence_expected_warnings()
    torch.set_num_threads(threads)
    ComparisonWorker(comparison, number).run()
