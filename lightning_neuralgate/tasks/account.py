"""How many questions a run was to ask, and what became of them: whether its figures are those of the whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional.tally import Tally
from lightning_neuralgate.runtime.resume import RUN_NAME
from lightning_neuralgate.tasks.answer_store import ANSWERS_NAME, read_answered
from lightning_neuralgate.tasks.item import AnsweredItem, skipped_of_each
from lightning_neuralgate.tasks.scoring import tally_answers
from lightning_neuralgate.tasks.verdicts import GuardScorer, NamedRefusalJudge


class Account(NamedTuple):
    """What became of the questions of a task.

    Attributes:
        available: questions in the task's files.
        asked: those that were to be asked, fewer under a limit.
        answered: those with an answer.
        skipped: broken items, those that were found before counting the questions included.
        missing: questions that were to be asked, and were neither answered nor skipped.
    """

    available: int
    asked: int
    answered: int
    skipped: int
    missing: int


def accounts(path: Path, answered: Mapping[str, int] | None = None) -> dict[str, Account]:
    """Task -> what became of its questions, by the `run.json` and `broken.jsonl` beside some answers.

    Args:
        path: the folder with `answers.jsonl`, or the file.
        answered: task -> number of answers in the file; what `run.json` says when left out.

    Returns:
        Nothing where there is no `run.json`: then nobody knows how many questions there should be.

    Raises:
        DataFormatError: naming the file that no run has written.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / RUN_NAME
    if not file.is_file() or not (path.is_dir() or path.name == ANSWERS_NAME):
        return {}
    try:
        run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        asked, available, unreadable = run["questions"], run["available"], run["unreadable"]
        found = run["answered"] if answered is None else answered
        skipped = skipped_of_each(folder)
        return {
            task: Account(
                available[task],
                count,
                found.get(task, 0),
                skipped.get(task, 0),
                max(0, count - found.get(task, 0) - unreadable.get(task, 0)),
            )
            for task, count in asked.items()
        }
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataFormatError(f"{file} is not what a run over tasks leaves there ({error!r}); delete it") from error


def partial_tasks(told: Mapping[str, Account]) -> list[str]:
    """The tasks whose questions were not all asked."""
    return [task for task, account in told.items() if account.missing]


def tally_run(
    path: Path, refusals: NamedRefusalJudge | None = None, guard: GuardScorer | None = None
) -> tuple[dict[str, Tally], dict[str, Account]]:
    """The rows of all answers of a run, and what became of its questions, by task.

    Of a run that was cut short, an image of MME of which one question was asked is left out.

    Args:
        path: the folder with `answers.jsonl`, or the file.
        refusals: see `tallies.tally_answers`.
        guard: see `tallies.tally_answers`.

    Raises:
        DataFormatError: naming file and item, see `tallies.tally_answers`, `answer_file.read_answered` and `accounts`.
    """
    counts: Counter[str] = Counter()
    cut = partial_tasks(accounts(path))
    answers = read_answered(path)
    try:
        tallies = tally_answers(_counted(answers, counts), refusals, guard, cut)
    except DataFormatError as error:
        raise error if str(path) in str(error) else DataFormatError(f"{path}: {error}") from error
    return tallies, accounts(path, counts)


def _counted(answers: Iterable[AnsweredItem], counts: Counter[str]) -> Iterator[AnsweredItem]:
    for one in answers:
        counts[one.task] += 1
        yield one
