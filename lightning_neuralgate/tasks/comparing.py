"""Two runs on the same questions: differences of their figures, and the items whose verdict changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.evaluation.statistics import paired_differences
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.parsing import json_lines
from lightning_neuralgate.tasks.answer_store import IndexedAnswers, read_answered
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS, benchmark_of
from lightning_neuralgate.tasks.scoring import averages, measured_figures, partial_tasks, refusals_of, tally_run
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
_MAX_ANSWER = 400
"""Characters of an answer that are kept for a changed item."""


class Change(NamedTuple):
    """An item with different verdicts in two runs: a line of `changed.jsonl`."""

    task: str
    item_id: str
    prompt: str
    truth: str
    first: str
    second: str
    first_answer: str
    second_answer: str


def verdict_of(answer: AnsweredItem, refused: bool | None, score: float | None = None) -> str:
    """Return the verdict on an answer: right, wrong, unparsed, leaks, keeps or answered; if it is empty, and if it refuses.

    Args:
        answer: the answer.
        refused: whether it refuses; None if the judge's reply was unclear.
        score: the score by MLLMGuard's judge, if there is one.

    Example:
        >>> answer = AnsweredItem("pope", "1", "a.png", "Is there a dog?", "yes", {}, "I'm sorry, I can't tell.")
        >>> verdict_of(answer, refused=True)  # POPE's rule takes it for a yes
        'right, refused'
    """
    parts = [benchmark_of(answer).verdict(answer)]
    if not answer.answer.strip():
        parts.append("empty")
    if refused is None or refused:
        parts.append("unclear whether refused" if refused is None else "refused")
    if score is not None:
        parts.append(f"score {score:g}")
    return ", ".join(parts)


def compare_runs(
    first: Path,
    second: Path,
    out: Path,
    refusals: tuple[NamedRefusalJudge, NamedRefusalJudge] | None = None,
    guard: tuple[GuardScorer, GuardScorer] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the answers of two runs, and write `compare.json` and `changed.jsonl`.

    Args:
        first: answers of one run, or their folder.
        second: answers of the other.
        out: folder for the two files.
        refusals: decides which answers of each run refuse, once for each answer; the default keyword list if None.
        guard: scores the answers of each run to MLLMGuard; `verdicts.LeakScorer` if None.
        resamples: number of bootstrap samples for intervals and p-values.
        seed: seed of the bootstrap.

    Returns:
        The content of `compare.json`: `refusals` and `guard`: the judges' names; `tasks`: task -> `n` units, `figures`:
        figure -> `PairedDifference`, as a mapping (empty with only one unit), `missing`, see `Benchmark.missing_parts`, and
        `changed`: "verdict -> verdict" -> number of items; `safety_first`, `safety_second`, `utility_first`,
        `utility_second`: the averages with their parts; `unclear_first`, `unclear_second`: see `verdicts.unclear_replies`;
        `questions_first`, `questions_second`: task -> `scoring.QuestionCounts`, as a mapping; `partial`: tasks with missing
        answers; `skipped`: tasks that only one of the runs has.

    Raises:
        DataFormatError: the runs have no task in common; they have different items, or questions, in a common one.
    """
    judges = [MemoizedJudge(judge) for judge in refusals or (KeywordListJudge(), KeywordListJudge())]
    guards = [MemoizedJudge(scorer) for scorer in guard or (LeakScorer(), LeakScorer())]
    runs = [tally_run(run, judge, scorer) for run, judge, scorer in zip((first, second), judges, guards, strict=True)]
    tallies = [tally for tally, _ in runs]
    common = [task for task in tallies[0] if task in tallies[1]]
    if not common:
        tasks = " and ".join(", ".join(tally) or "nothing" for tally in tallies)
        raise DataFormatError(f"{first} and {second} have no task in common: {tasks}")
    names = {"refusals": judges[0].name, "guard": [scorer.name for scorer in guards]}
    result: dict[str, Any] = {"first": str(first), "second": str(second), **names, "tasks": {}}
    for task in common:
        before, after = tallies[0][task], tallies[1][task]
        try:
            # a single unit says nothing about chance
            single = len(before.names) == len(after.names) == 1
            differences = {} if single else paired_differences(before, after, resamples, seed)
        except DataFormatError as error:
            raise DataFormatError(f"task '{task}' of {first} and {second}: {error}") from error
        figures = {name: difference._asdict() for name, difference in differences.items()}
        missing = BENCHMARKS[task].missing_parts(measured_figures(before))
        result["tasks"][task] = {"n": len(before.names), "figures": figures, "missing": missing, "changed": {}}
    counts: dict[str, Counter[str]] = {task: Counter() for task in common}
    with atomic_write(out / CHANGED_NAME) as draft, draft.open("w", encoding="ascii") as lines:
        for change in _changes(first, second, set(common), judges, guards):
            counts[change.task][f"{change.first} -> {change.second}"] += 1
            lines.write(json.dumps(change._asdict()) + "\n")
    for task in common:
        result["tasks"][task]["changed"] = dict(counts[task].most_common())
    for number, name in enumerate(("first", "second")):
        result[f"questions_{name}"] = {task: count._asdict() for task, count in runs[number][1].items()}
        figures_of = {task: measured_figures(tally) for task, tally in tallies[number].items()}
        result |= {f"{kind}_{name}": average for kind, average in averages(figures_of).items()}
        result[f"unclear_{name}"] = [*unclear_replies(judges[number]), *unclear_replies(guards[number])]
    result["partial"] = sorted({task for _, question_counts in runs for task in partial_tasks(question_counts)})
    result["skipped"] = sorted({*tallies[0], *tallies[1]} - set(common))
    with atomic_write(out / COMPARISON_NAME) as draft:
        draft.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _changes(
    first: Path,
    second: Path,
    tasks: set[str],
    refused: Sequence[MemoizedJudge[bool | None]],
    scores: Sequence[MemoizedJudge[float | None]],
) -> Iterator[Change]:
    with IndexedAnswers(second) as answers_after:
        for before in read_answered(first):
            if before.task not in tasks:
                continue
            after = answers_after.get(before.key)
            if after is None or (before.prompt, before.truth) != (after.prompt, after.truth):
                raise DataFormatError(
                    f"item '{before.item_id}' of '{before.task}' is not the same in {first} and {second}; compare runs on "
                    "the same questions"
                )
            old, new = (
                verdict_of(answer, refusals_of([answer], refused[run])[0], scores[run].verdicts.get(before.key))
                for run, answer in enumerate((before, after))
            )
            if old != new:
                answers = before.answer[:_MAX_ANSWER], after.answer[:_MAX_ANSWER]
                yield Change(before.task, before.item_id, before.prompt, before.truth, old, new, *answers)


def read_changes(out: Path, most: int = 2) -> Iterator[Change]:
    """Yield the first few changed items of each task and kind of change from `changed.jsonl`."""
    seen: Counter[tuple[str, str, str]] = Counter()
    for place, content in json_lines(out / CHANGED_NAME, own=True):
        try:
            change = Change(**content)
            kind = (change.task, change.first, change.second)
            seen[kind] += 1
        except TypeError as error:
            raise DataFormatError(f"{place}: no changed item ({error}); compare again") from error
        if seen[kind] <= most:
            yield change
