"""Compare methods of editing on one model: the same training records, as many tries, and one look at the test data.

1. Each method is fitted with its `tries` on seed 0, and measured on validation records and on ordinary questions that no test
   has. The best try (`best_try`) are its tuned settings.
2. With its own defaults ("default") and the tuned settings ("tuned") it is fitted and measured on test data, with all seeds.

In a sweep, the second step has several values of one setting instead, with the others tuned.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_neuralgate.demo.measured import MeasuredExperiment, best_try
from lightning_neuralgate.demo.workers import exit_with_parent
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.evaluation.answers import write_answers
from lightning_neuralgate.methods import METHODS, FittedMethod, Method, MethodData, WeightEdit
from lightning_neuralgate.runtime.cost import measure
from lightning_neuralgate.runtime.process import silence_expected_warnings
from lightning_neuralgate.runtime.shared_jobs import SharedJobs

DEFAULT, TUNED = "default", "tuned"
UNEDITED = "unedited"
RESULTS_FOLDER = "results"
RECORDS = "records"
SWEEPS: dict[str, tuple[float, ...]] = {
    "alpha": (0.0, 0.25, 0.75, 1.25, 2.5, 5.0), "tau": (0.1, 0.3, 0.5, 0.7, 0.9), RECORDS: (1, 2, 3, 5),
}  # fmt: skip
"""Setting -> its values: the weight of the benign term, the gate's threshold, and the number of edit records per subject."""


class Job(NamedTuple):
    """One fit and its measurement.

    Attributes:
        stage: `validation` or `test`.
        seed: seed of the data and of the fit.
        method: name of the method, or "unedited".
        settings: number of the try, or "default" or "tuned", or in a sweep "tuned+alpha=0.5".
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
    def swept(self) -> tuple[str, float] | None:
        """The setting of a sweep and its value; None outside of a sweep."""
        name, sign, value = self.settings.partition("+")[2].partition("=")
        return (name, float(value)) if sign else None

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
        sweep: a setting of `SWEEPS` whose values are compared; None for a comparison of methods. Both may share a folder, and
            with it the tries.

    Raises:
        UnsupportedSetupError: there is no such method or sweep, or a method lacks the setting.
    """

    out: Path
    methods: Sequence[str]
    seeds: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    tuned: bool = True
    sweep: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.methods) - METHODS.keys()):
            raise UnsupportedSetupError(f"there is no method '{unknown[0]}'; there are {', '.join(METHODS)}")
        if self.sweep is None:
            return
        if self.sweep not in SWEEPS:
            raise UnsupportedSetupError(f"there is no sweep of '{self.sweep}'; there are {', '.join(SWEEPS)}")
        if self.sweep != RECORDS:
            having = [name for name, method in METHODS.items() if self.sweep in _settings(method)]
            if lacking := sorted(set(self.methods) - set(having)):
                raise UnsupportedSetupError(
                    f"the method '{lacking[0]}' has no setting '{self.sweep}' to sweep; these have it: {', '.join(having)}"
                )

    @cached_property
    def results(self) -> SharedJobs:
        """The results of jobs, by name."""
        return SharedJobs(self.out / RESULTS_FOLDER)

    def result(self, job: Job) -> dict[str, Any] | None:
        """Return the result of a job; None if it is not finished."""
        return self.results.result(job.name)

    def answers_file(self, job: Job) -> Path:
        """The file with the answers to the test records' queries of a finished job of the test."""
        return self.out / RESULTS_FOLDER / f"{job.name}.jsonl"

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
        if job.swept is not None:
            setting, value = job.swept
            base = self.fitted_as(job._replace(settings=job.settings.partition("+")[0]))
            return base if base is None or setting == RECORDS else replace(base, **{setting: value})
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
            if self.sweep is not None:
                swept = [job for method in self.methods for job in self.swept_jobs(seed, method)]
                yield from (job for job in swept if self.fitted_as(job) is not None)
                continue
            yield from (Job("test", seed, method) for method in self.methods)
            if self.tuned:
                tuned = [Job("test", seed, method, TUNED) for method in self.methods]
                # the defaults may be the best try: then they are not fitted twice
                yield from (job for job in tuned if self.fitted_as(job) not in (None, METHODS[job.method]()))

    def swept_jobs(self, seed: int, method: str) -> list[Job]:
        """Return the jobs of a method in a sweep with one seed; none outside of a sweep."""
        values = SWEEPS[self.sweep] if self.sweep is not None else ()
        base = TUNED if self.tuned else DEFAULT
        return [Job("test", seed, method, f"{base}+{self.sweep}={value:g}") for value in values]

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
        self._folder: Path | None = None
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
            write_answers(self.comparison.answers_file(job), experiment.judged[UNEDITED])
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
                    write_answers(self.comparison.answers_file(job), experiment.judged[name])
            finally:
                experiment.processor = processor
        return {
            **figures, "method_settings": dict(fitted.settings), "report": dict(fitted.report), "seconds": cost.seconds,
            "peak_memory": cost.peak_memory, "artifact_bytes": artifact_bytes(fitted, experiment.model),
        }  # fmt: skip

    def _prepared(self, job: Job) -> tuple[MeasuredExperiment, MethodData]:
        folder = self.comparison.out / job.stage / f"seed-{job.seed}" / f"process-{self.number}"
        options = dict(self.comparison.options)
        if job.swept is not None and job.swept[0] == RECORDS:
            options["edit_records"] = int(job.swept[1])
            folder = folder / f"records-{options['edit_records']}"
        if self._experiment is None or self._data is None or self._folder != folder:
            self._experiment = self._data = None  # one model in memory
            experiment = MeasuredExperiment(folder, job.seed, options, job.stage == "validation")
            experiment.prepare()
            self._experiment, self._data, self._folder = experiment, method_data(experiment), folder
        return self._experiment, self._data


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


def _settings(method: type[Method]) -> set[str]:
    return {entry.name for entry in fields(method)}


def _work(comparison: Comparison, number: int, threads: int) -> None:
    exit_with_parent()
    silence_expected_warnings()
    torch.set_num_threads(threads)
    ComparisonWorker(comparison, number).run()
