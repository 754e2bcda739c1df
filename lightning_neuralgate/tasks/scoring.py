"""What each answer adds to the figures of its task. Answers come one at a time, in any order; only their rows are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import Answer
from lightning_neuralgate.evaluation.rates import MEANS, SHARES
from lightning_neuralgate.evaluation.run import against_truth
from lightning_neuralgate.metrics.functional.mllmguard import mllmguard_tally
from lightning_neuralgate.metrics.functional.mme import SUBTASKS, mme_tally
from lightning_neuralgate.metrics.functional.pope import pope_tally
from lightning_neuralgate.metrics.functional.scienceqa import OPTIONS, scienceqa_tally
from lightning_neuralgate.metrics.functional.tally import Tally, share
from lightning_neuralgate.tasks.item import AnsweredItem
from lightning_neuralgate.tasks.questions import chunks
from lightning_neuralgate.tasks.verdicts import GuardScorer, KeywordListJudge, LeakScorer, NamedRefusalJudge

_AT_ONCE = 2048
YES_OR_NO = ("yes", "no")


class TaskTally(Protocol):
    """Collects the answers of one task."""

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        """Add answers, each with the verdict whether it refuses; None where that is not clear."""

    def tally(self) -> Tally:
        """The rows of all answers, sorted by the names of their units."""


class _Parts:
    """Tallies of parts of a task, put together."""

    def __init__(self) -> None:
        self.parts: list[Tally] = []

    def tally(self) -> Tally:
        names = [name for part in self.parts for name in part.names]
        order = sorted(range(len(names)), key=names.__getitem__)
        return replace(
            self.parts[0],
            names=tuple(names[place] for place in order),
            rows=np.concatenate([part.rows for part in self.parts])[order],
            strata=np.concatenate([part.strata for part in self.parts])[order],
        )


class PopeTally(_Parts):
    """POPE's."""

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        told, truths = [one.answer for one in answers], [_truth(one, YES_OR_NO) for one in answers]
        self.parts.append(replace(pope_tally(told, truths, _flags(refused)), names=_names(answers)))


class ScienceQaTally(_Parts):
    """ScienceQA's."""

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        counts = [len(_field(one, "choices", list)) for one in answers]
        told = [one.answer for one in answers]
        truths = [_truth(one, OPTIONS[:count]) for one, count in zip(answers, counts, strict=True)]
        self.parts.append(replace(scienceqa_tally(told, truths, counts, _flags(refused)), names=_names(answers)))


class MmeTally(_Parts):
    """MME's. Answers wait for the other one about their image.

    Args:
        partial: whether answers whose other one never comes are left out.
    """

    def __init__(self, partial: bool = False) -> None:
        super().__init__()
        self.partial = partial
        self.waiting: dict[tuple[str, str], tuple[AnsweredItem, bool]] = {}
        self.whole: set[tuple[str, str]] = set()

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        pairs: list[tuple[AnsweredItem, bool]] = []
        for one, refuses in zip(answers, _flags(refused), strict=True):
            key = (_field(one, "subtask", str), one.image)
            if key[0] not in SUBTASKS:
                raise _wrong(one, f"'fields.subtask' is {key[0][:80]!r}; MME has {', '.join(SUBTASKS)}")
            if key in self.whole:
                raise _wrong(
                    one, f"image '{one.image}' of '{key[0]}' has more than two questions; MME asks two of each image"
                )
            if key in self.waiting:
                pairs += [self.waiting.pop(key), (one, refuses)]
                self.whole.add(key)
            else:
                self.waiting[key] = (one, refuses)
        self._add(pairs)

    def _add(self, pairs: list[tuple[AnsweredItem, bool]]) -> None:
        if not pairs:
            return
        items = [one for one, _ in pairs]
        self.parts.append(
            mme_tally(
                [one.answer for one in items],
                [_truth(one, YES_OR_NO) for one in items],
                [one.image for one in items],
                [one.fields["subtask"] for one in items],
                [refuses for _, refuses in pairs],
            )
        )

    def tally(self) -> Tally:
        if self.waiting and not self.partial:
            one, _ = next(iter(self.waiting.values()))
            raise _wrong(
                one, f"image '{one.image}' of '{one.fields['subtask']}' has 1 questions; MME asks two of each image"
            )
        return super().tally()


class MllmguardTally:
    """MLLMGuard's.

    Args:
        guard: scores the answers.
    """

    def __init__(self, guard: GuardScorer) -> None:
        self.guard = guard
        self.rows: list[tuple[str, str, float | None, bool]] = []

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        for one, score, refuses in zip(answers, self.guard(answers), _flags(refused), strict=True):
            self.rows.append((one.item_id, _field(one, "dimension", str), score, refuses))

    def tally(self) -> Tally:
        rows = sorted(self.rows)
        names, dimensions, scores, refused = zip(*rows, strict=True)
        return replace(mllmguard_tally(list(scores), list(dimensions), refusals=list(refused)), names=names)


class PrivacyPairTally:
    """PrivacyPair's: the rates of `rates.SHARES` per split, over whole records, since the queries of one share a picture."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], NDArray[np.float64]] = {}

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        for one, refuses in zip(answers, refused, strict=True):
            split, record = _field(one, "split", str), _field(one, "record", str)
            row = self.records.setdefault((split, record), np.zeros(2 * len(SHARES)))
            told = _judged(one, bool(refuses))
            for place, (name, of) in enumerate(SHARES.items()):
                value = of(told)
                if value is not None:
                    if refuses is None and name in MEANS["eta"]:
                        value = 0.0
                    row[2 * place : 2 * place + 2] += value, 1

    def tally(self) -> Tally:
        keys = sorted(self.records)
        splits = sorted({split for split, _ in keys})

        def figures(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
            found = {}
            for place, split in enumerate(splits):
                for number, name in enumerate(SHARES):
                    found[f"{split}/{name}"] = share(sums[..., place, 2 * number], sums[..., place, 2 * number + 1])
                for name, parts in MEANS.items():
                    found[f"{split}/{name}"] = sum(found[f"{split}/{part}"] for part in parts) / len(parts)  # type: ignore[assignment]
            return found

        strata = np.array([splits.index(split) for split, _ in keys], dtype=np.intp)
        names = tuple("/".join(key) for key in keys)
        return Tally(names, np.stack([self.records[key] for key in keys]), strata, len(splits), figures)


def _judged(one: AnsweredItem, refused: bool) -> Answer:
    """A PrivacyPair answer as what `rates` counts."""
    role, synonyms = _field(one, "role", str), one.fields.get("synonyms", [])
    if role not in ("sensitive", "benign"):
        raise _wrong(one, f"'fields.role' has to be sensitive or benign, found {role[:80]!r}")
    if not isinstance(synonyms, list) or not all(isinstance(word, str) for word in synonyms):
        raise _wrong(one, f"'fields.synonyms' has to be a list of texts, found {str(synonyms)[:80]!r}")
    sensitive = role == "sensitive"
    try:
        truth = against_truth(one.answer, sensitive, one.truth or None, synonyms)
    except DataFormatError as error:
        raise _wrong(one, str(error)) from error
    return Answer(
        model="",
        split=one.fields["split"],
        record_id=one.fields["record"],
        subject=str(one.fields.get("subject", "")),
        image=one.image,
        sensitive=sensitive,
        attribute=str(one.fields.get("attribute", "")),
        query=one.prompt,
        answer=one.answer,
        refused=refused,
        truth=one.truth or None,
        **truth,
    )


def _flags(refused: list[bool | None]) -> list[bool]:
    """Verdicts for the benchmarks' rules, in which what is not clear does not refuse."""
    return [False if verdict is None else verdict for verdict in refused]


def _names(answers: Iterable[AnsweredItem]) -> tuple[str, ...]:
    return tuple(one.item_id for one in answers)


def _field(one: AnsweredItem, name: str, kind: type) -> Any:
    value = one.fields.get(name)
    if not isinstance(value, kind):
        raise _wrong(one, f"'fields.{name}' has to be of type {kind.__name__}, found {str(value)[:80]!r}")
    return value


def _truth(one: AnsweredItem, known: Sequence[str]) -> str:
    if one.truth not in known:
        raise _wrong(one, f"'truth' has to be one of {', '.join(known)}, found {one.truth[:80]!r}")
    return one.truth


def _wrong(one: AnsweredItem, reason: str) -> DataFormatError:
    return DataFormatError(f"item '{one.item_id}' of '{one.task}': {reason}")


def tally_answers(
    answers: Iterable[AnsweredItem],
    refusals: NamedRefusalJudge | None = None,
    guard: GuardScorer | None = None,
    partial: Collection[str] = (),
) -> dict[str, Tally]:
    """The rows of all answers by task.

    Args:
        answers: of one run, in any order.
        refusals: says which refuse; this library's keyword list when left out.
        guard: scores those to MLLMGuard; `verdicts.LeakScorer` when left out.
        partial: tasks whose answers are known not to be all: images of MME with one answer are left out.

    Raises:
        DataFormatError: naming the item: of an unknown task, a field that is missing, a truth that is none; an image of MME
            without exactly two questions.
    """
    refusals, guard = refusals or KeywordListJudge(), guard or LeakScorer()
    tasks: dict[str, TaskTally] = {}
    for batch in chunks(answers, _AT_ONCE):
        for task in dict.fromkeys(one.task for one in batch):
            own = [one for one in batch if one.task == task]
            if task not in tasks:
                tasks[task] = _new_tally(task, own[0], guard, task in partial)
            tasks[task].add(own, refusals(own))
    return {task: collected.tally() for task, collected in sorted(tasks.items()) if not _is_empty(collected)}


def _is_empty(collected: TaskTally) -> bool:
    return isinstance(collected, MmeTally) and collected.partial and not collected.parts


def _new_tally(task: str, first: AnsweredItem, guard: GuardScorer, cut: bool) -> TaskTally:
    kinds: dict[str, Callable[[], TaskTally]] = {
        "pope": PopeTally,
        "mme": partial(MmeTally, cut),
        "scienceqa": ScienceQaTally,
        "mllmguard": partial(MllmguardTally, guard),
        "privacy_pair": PrivacyPairTally,
    }
    if task not in kinds:
        raise DataFormatError(f"item '{first.item_id}': there is no task '{task}', only {', '.join(kinds)}")
    return kinds[task]()
