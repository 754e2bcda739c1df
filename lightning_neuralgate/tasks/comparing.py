"""Two runs on the same questions side by side: differences of figures, and the items on which the verdict changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.statistics import paired_differences
from lightning_neuralgate.metrics.functional import leaks, says_value
from lightning_neuralgate.metrics.functional.mme import mme_verdict
from lightning_neuralgate.metrics.functional.pope import pope_verdict
from lightning_neuralgate.metrics.functional.scienceqa import scienceqa_choice
from lightning_neuralgate.metrics.functional.tally import Tally
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.tasks.account import partial_tasks, tally_run
from lightning_neuralgate.tasks.answer_store import IndexedAnswers, read_answered
from lightning_neuralgate.tasks.item import AnsweredItem
from lightning_neuralgate.tasks.scores import averages, missing_parts
from lightning_neuralgate.tasks.verdicts import (
    GuardScorer,
    KeywordListJudge,
    LeakScorer,
    MemoizedJudge,
    NamedRefusalJudge,
    unclear_replies,
)

CHANGED_NAME = "changed.jsonl"
COMPARISON_NAME = "compare.json"
_SHOWN = 400
"""Characters of an answer that are kept of a changed item."""


class Change(NamedTuple):
    """An item on which two runs have different verdicts."""

    task: str
    item_id: str
    prompt: str
    truth: str
    first: str
    second: str
    first_answer: str
    second_answer: str


def verdict_of(one: AnsweredItem, refused: bool | None, score: float | None = None) -> str:
    """What an answer counts as: right, wrong, unparsed, leaks, keeps or answered; and whether it is empty, and refuses.

    Args:
        one: the answer.
        refused: whether it refuses; None where the judge's reply was not clear.
        score: what MLLMGuard's judge gave it, if there is one.

    Example:
        >>> one = AnsweredItem("pope", "1", "a.png", "Is there a dog?", "yes", {}, "I'm sorry, I can't tell.")
        >>> verdict_of(one, refused=True)  # POPE's rule takes it for a yes
        'right, refused'
    """
    told = [_against_truth(one)]
    if not one.answer.strip():
        told.append("empty")
    if refused is None or refused:
        told.append("unclear whether refused" if refused is None else "refused")
    if score is not None:
        told.append(f"score {score:g}")
    return ", ".join(told)


def _against_truth(one: AnsweredItem) -> str:
    if one.task in ("pope", "mme"):
        said = pope_verdict(one.answer) if one.task == "pope" else mme_verdict(one.answer)
        return "unparsed" if said == "other" else _right(said == one.truth)
    if one.task == "scienceqa":
        choice = scienceqa_choice(one.answer, len(one.fields["choices"]))
        return "unparsed" if choice is None else _right(choice == one.truth)
    if not one.truth:
        return "answered"
    if one.task == "mllmguard" or one.fields["role"] == "sensitive":
        return "leaks" if leaks(one.answer, one.truth) else "keeps"
    return _right(says_value(one.answer, one.truth, one.fields.get("synonyms", ())))


def _right(right: bool) -> str:
    return "right" if right else "wrong"


def compare_runs(
    first: Path,
    second: Path,
    out: Path,
    refusals: tuple[NamedRefusalJudge, NamedRefusalJudge] | None = None,
    guard: tuple[GuardScorer, GuardScorer] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the answers of two runs; writes `compare.json` and `changed.jsonl`.

    Args:
        first: answers of one run, or the folder that they lie in.
        second: answers of the other.
        out: folder for the two files.
        refusals: says which answers of each run refuse; this library's keyword list when left out. Asked once about each.
        guard: scores the answers of each run to MLLMGuard; `verdicts.LeakScorer` when left out.
        resamples: how often items are drawn again for intervals and p-values.
        seed: of drawing.

    Returns:
        What `compare.json` holds: `refusals` and `guard`: the names of who judged; `tasks`: task -> `n` units, `figures`:
        figure -> `PairedDifference`, as a mapping (nothing where there is one unit alone), `missing`, see
        `scores.missing_parts`, and `changed`: "verdict -> verdict" -> number of items; `safety_first`, `safety_second`,
        `utility_first`, `utility_second`: the averages with their parts; `unclear_first`, `unclear_second`: see
        `verdicts.unclear_replies`; `questions_first`, `questions_second`: task -> `account.Account`, as a mapping;
        `partial`: tasks whose questions were not all asked; `skipped`: tasks that only one of the runs has.

    Raises:
        DataFormatError: the runs have no task in common; they have other items, or other questions, in one that both have.
    """
    asked = [MemoizedJudge(one) for one in refusals or (KeywordListJudge(), KeywordListJudge())]
    guards = [MemoizedJudge(one) for one in guard or (LeakScorer(), LeakScorer())]
    runs = [tally_run(run, judge, scorer) for run, judge, scorer in zip((first, second), asked, guards, strict=True)]
    tallies = [tally for tally, _ in runs]
    common = [task for task in tallies[0] if task in tallies[1]]
    if not common:
        told = " and ".join(", ".join(one) or "nothing" for one in tallies)
        raise DataFormatError(f"{first} and {second} have no task in common: {told}")
    named = {"refusals": asked[0].name, "guard": [one.name for one in guards]}
    result: dict[str, Any] = {"first": str(first), "second": str(second), **named, "tasks": {}}
    for task in common:
        try:
            one, other = (tallies[number][task] for number in (0, 1))
            # of one unit there is nothing to say about chance
            alone = len(one.names) == len(other.names) == 1
            found = {} if alone else paired_differences(one, other, resamples, seed)
        except DataFormatError as error:
            raise DataFormatError(f"task '{task}' of {first} and {second}: {error}") from error
        figures = {name: difference._asdict() for name, difference in found.items()}
        missing = missing_parts(task, _told(one))
        result["tasks"][task] = {"n": len(one.names), "figures": figures, "missing": missing, "changed": {}}
    counts: dict[str, Counter[str]] = {task: Counter() for task in common}
    with atomic_write(out / CHANGED_NAME) as draft, draft.open("w", encoding="ascii") as lines:
        for change in _changes(first, second, set(common), asked, guards):
            counts[change.task][f"{change.first} -> {change.second}"] += 1
            lines.write(json.dumps(change._asdict()) + "\n")
    for task in common:
        result["tasks"][task]["changed"] = dict(counts[task].most_common())
    for number, name in enumerate(("first", "second")):
        result[f"questions_{name}"] = {task: account._asdict() for task, account in runs[number][1].items()}
        figures_of = {task: _told(tally) for task, tally in tallies[number].items()}
        result |= {f"{kind}_{name}": average for kind, average in averages(figures_of).items()}
        result[f"unclear_{name}"] = [*unclear_replies(asked[number]), *unclear_replies(guards[number])]
    result["partial"] = sorted({task for _, told in runs for task in partial_tasks(told)})
    result["skipped"] = sorted({*tallies[0], *tallies[1]} - set(common))
    with atomic_write(out / COMPARISON_NAME) as draft:
        draft.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _told(tally: Tally) -> dict[str, float]:
    return {name: float(value) for name, value in tally.compute().items() if not np.isnan(value)}


def _changes(
    first: Path,
    second: Path,
    tasks: set[str],
    refused: Sequence[MemoizedJudge[bool | None]],
    scores: Sequence[MemoizedJudge[float | None]],
) -> Iterator[Change]:
    with IndexedAnswers(second) as others:
        for one in read_answered(first):
            if one.task not in tasks:
                continue
            other = others.get(one.key)
            if other is None or (one.prompt, one.truth) != (other.prompt, other.truth):
                raise DataFormatError(
                    f"item '{one.item_id}' of '{one.task}' is not the same in {first} and {second}; compare runs on the same "
                    "questions"
                )
            had, has = (
                verdict_of(answer, refused[run].verdicts[one.key], scores[run].verdicts.get(one.key))
                for run, answer in enumerate((one, other))
            )
            if had != has:
                said = one.answer[:_SHOWN], other.answer[:_SHOWN]
                yield Change(one.task, one.item_id, one.prompt, one.truth, had, has, *said)


def read_changes(out: Path, most: int = 2) -> Iterator[Change]:
    """The first few changed items of each task and kind of change, out of `changed.jsonl`."""
    seen: Counter[tuple[str, str, str]] = Counter()
    with (out / CHANGED_NAME).open(encoding="ascii") as lines:
        for line in lines:
            change = Change(**json.loads(line))
            kind = (change.task, change.first, change.second)
            seen[kind] += 1
            if seen[kind] <= most:
                yield change
