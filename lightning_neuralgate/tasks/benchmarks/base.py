"""`Benchmark`: what every benchmark defines, in one file of this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.metrics.functional.forms import AnswerForm
from lightning_neuralgate.metrics.functional.tally import Tally
from lightning_neuralgate.tasks.questions import Source
from lightning_neuralgate.tasks.verdicts import GuardScorer


class TaskTally(Protocol):
    """Collects the answers of one task, and sums them up as a `Tally`."""

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        """Add answers, with the verdict whether each refuses; None if that is unclear."""

    def tally(self) -> Tally | None:
        """Return the rows of all answers, sorted by the names of their units; None if there are none."""


class TallySettings(NamedTuple):
    """How a run is scored.

    Attributes:
        judge: name of the judge that decides which answers refuse.
        guard: scores the answers of benchmarks with `uses_guard`.
        partial: whether the run was cut short, so that units with missing answers are left out instead of refused.
        is_partial: whether an answer refuses in part only, by a judge with that class; called after its verdict was given.
    """

    judge: str
    guard: GuardScorer
    partial: bool = False
    is_partial: Callable[[AnsweredItem], bool] = lambda answer: False


class Benchmark(ABC):
    """A benchmark: where its questions come from, how answers are scored, shown, compared and exported.

    To add one, write a file with a subclass, and add an instance to `BENCHMARKS` (`tasks/benchmarks/__init__.py`).

    Attributes:
        name: the task's name on the command line and in files.
        protocol: the scoring rule and its owner, printed with the figures.
        shown: the figures that tables show, in their order; all others are in the JSON files.
        unit: what is resampled for intervals.
        source_options: a frozen dataclass whose fields become `--sources.*` options; its `Attributes` are their help.
            The field with the benchmark's own name holds the path or dataset.
        uses_data_options: whether the questions come from `--data.*`.
        uses_guard: whether answers need scores from a judge (`--judge.guard`, `--judge.guard_scores`).
        has_export: whether `export` writes anything.
        has_mini: whether `render_mini` draws a set; the task is then among `all`.
    """

    name: ClassVar[str]
    protocol: ClassVar[str]
    shown: ClassVar[tuple[str, ...]]
    unit: ClassVar[str] = "item"
    source_options: ClassVar[type | None] = None
    uses_data_options: ClassVar[bool] = False
    uses_guard: ClassVar[bool] = False
    has_export: ClassVar[bool] = False
    has_mini: ClassVar[bool] = True

    @abstractmethod
    def source(self, options: Any, data: DataOptions) -> Source:
        """Return the reader of the questions.

        Args:
            options: has the fields of `source_options`.
            data: PrivacyPair records, for benchmarks with `uses_data_options`.

        Raises:
            DataFormatError: the source is not given.
        """

    def mini_sources(self, folder: Path) -> dict[str, Any]:
        """Return the values of `source_options` for a mini set drawn into a folder."""
        return {self.name: str(folder)} if self.source_options and self.has_mini else {}

    @abstractmethod
    def new_tally(self, settings: TallySettings) -> TaskTally:
        """Return an empty tally for the answers of one run."""

    def form(self, answer: AnsweredItem) -> tuple[AnswerForm, Sequence[str]]:
        """Return the form of an answer's question, and the texts of its choices; by default open questions.

        An answer that opens with what the form asks for is no refusal, whatever a judge says (`metrics.functional.forms`).
        """
        return "open", ()

    def missing_parts(self, figures: Mapping[str, float]) -> list[str]:
        """Return the parts of the benchmark, such as subtasks, that no answer belongs to.

        While there are any, sums and means over parts are not comparable with the owner's.

        Args:
            figures: figure -> value, without those that were not measured.
        """
        return []

    @abstractmethod
    def verdict(self, answer: AnsweredItem) -> str:
        """Return the verdict against the truth: right, wrong, unparsed, leaks, keeps or answered."""

    def export(self, answer: AnsweredItem) -> Iterator[tuple[Path, str]]:
        """Yield (relative file, line) in the format of the owner's tool."""
        return iter(())

    def named_source(self, options: Any) -> str:
        """Return the path or dataset of the benchmark's own `--sources` option.

        Raises:
            DataFormatError: it is not given.
        """
        named: str | None = getattr(options, self.name)
        if named is None:
            way_out = ", or --mini for a drawn set" if self.has_mini else "; --mini has no drawn set of it"
            raise DataFormatError(f"where is '{self.name}'? Give --sources.{self.name} FOLDER{way_out}")
        return named


class TallyParts:
    """Tallies of batches, concatenated."""

    def __init__(self) -> None:
        self.parts: list[Tally] = []

    def tally(self) -> Tally | None:
        """Return the concatenated tally, sorted by name."""
        if not self.parts:
            return None
        names = [name for part in self.parts for name in part.names]
        order = sorted(range(len(names)), key=names.__getitem__)
        return replace(
            self.parts[0],
            names=tuple(names[place] for place in order),
            rows=np.concatenate([part.rows for part in self.parts])[order],
            strata=np.concatenate([part.strata for part in self.parts])[order],
        )


def refused_flags(refused: list[bool | None]) -> list[bool]:
    """Return verdicts for rules without an unclear verdict: unclear counts as not refused."""
    return [bool(verdict) for verdict in refused]


def checked_truth(answer: AnsweredItem, known: Sequence[str]) -> str:
    """Return the truth of an answer.

    Raises:
        DataFormatError: it is none of the known ones.
    """
    if answer.truth not in known:
        raise answer.error(f"'truth' has to be one of {', '.join(known)}, found {answer.truth[:80]!r}")
    return answer.truth


def right_or_wrong(right: bool) -> str:
    """Return the verdict on a parsed answer."""
    return "right" if right else "wrong"


def yes_no_verdict(predicted: str, truth: str) -> str:
    """Return the verdict on a yes/no prediction, "other" being unparsed."""
    return "unparsed" if predicted == "other" else right_or_wrong(predicted == truth)


YES_OR_NO = ("yes", "no")
