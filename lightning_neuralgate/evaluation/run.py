"""Ask a model every query of the test splits and judge the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.records import PrivacyRecord
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.errors import DataFormatError, UnsupportedSetupError
from lightning_neuralgate.evaluation.answers import Answer
from lightning_neuralgate.evaluation.rates import summarize
from lightning_neuralgate.metrics.functional import (
    RefusalVariant,
    is_refusal,
    leaked_share,
    leaks,
    says_value,
    verdict_stands,
)

__all__ = ["Judge", "evaluate", "summarize"]

Judge = Callable[[Sequence[str], Sequence[str]], Sequence[bool]]
"""Queries and answers -> for each whether the answer refuses."""


def evaluate(
    model: Any,
    processor: Any,
    splits: Mapping[str, Sequence[PrivacyRecord]],
    images: Path,
    name: str,
    variant: RefusalVariant = "prefix",
    max_new_tokens: int = 20,
    batch_size: int = 8,
    sampling: Mapping[str, Any] | None = None,
    judge: Judge | None = None,
    share_prefixes: bool = True,
    progress: bool = True,
    until_decided: bool = False,
) -> list[Answer]:
    """Answers of a model to all queries of some splits, each judged.

    Args:
        model: the model.
        processor: its processor.
        splits: split name -> records.
        images: folder that the answers' image paths are relative to.
        name: what to call the model in the answers, such as "unedited".
        variant: the keyword list that says what a refusal is.
        max_new_tokens: length of an answer.
        batch_size: queries answered at once.
        sampling: arguments of `generate`; greedy when left out.
        judge: a second judge of refusals, asked once for all answers; none when left out.
        share_prefixes: run what queries about one picture begin with once for all of them.
        progress: show a bar.
        until_decided: end each answer where the rest cannot change the keyword list's verdict. Refusal rates are the same, in
            less time (for greedy answers; sampled ones are drawn anew). Leaks and right benign answers are not judged, since
            these may lie in what is not told.

    Raises:
        UnsupportedSetupError: a judge is to judge answers that are not told to their end.
        DataFormatError: a true value or synonym without letters and digits, or a judge that does not give one verdict,
            true or false, for each answer.
    """
    if until_decided and judge is not None:
        raise UnsupportedSetupError("a second judge needs whole answers: leave out until_decided, or the judge")
    asked = [
        (split, record, row) for split, records in splits.items() for record in records for row in question_rows(record)
    ]
    pairs = [
        next(pair for pair in record.pairs if row.query == (pair.sensitive if row.role == "sensitive" else pair.benign))
        for _, record, row in asked
    ]
    for _, record, row in asked:
        try:
            against_truth("", row.role == "sensitive", row.truth, row.synonyms)
        except DataFormatError as error:  # now, not after an hour of answering
            raise DataFormatError(f"record '{record.record_id}', query '{row.query}': {error}") from error
    told = answer_rows(
        model,
        processor,
        [row for *_, row in asked],
        max_new_tokens,
        batch_size,
        sampling,
        f"answers, {name}" if progress else None,
        share_prefixes,
        partial(verdict_stands, variant=variant) if until_decided else None,
    )
    verdicts = refusal_verdicts(judge, [row.query for *_, row in asked], told)
    answers = []
    for (split, record, row), pair, answer, judged in zip(asked, pairs, told, verdicts, strict=True):
        sensitive = row.role == "sensitive"
        answers.append(
            Answer(
                model=name,
                split=split,
                record_id=record.record_id,
                subject=record.subject,
                image=record.image.resolve().relative_to(images.resolve()).as_posix(),
                sensitive=sensitive,
                attribute=pair.sensitive_attribute if sensitive else pair.benign_attribute,
                query=row.query,
                answer=answer,
                refused=is_refusal(answer, variant),
                truth=row.truth,
                judged=judged,
                **against_truth(answer, sensitive, None if until_decided else row.truth, row.synonyms),
            )
        )
    return answers


def against_truth(answer: str, sensitive: bool, truth: str | None, synonyms: Sequence[str] = ()) -> dict[str, Any]:
    """What the true value says about an answer, as fields of `Answer`; nothing where it is not known.

    Raises:
        DataFormatError: a true value or synonym without letters and digits.
    """
    if truth is None:
        return {}
    if sensitive:
        return {"leaked": leaks(answer, truth), "leaked_share": leaked_share(answer, truth)}
    return {"correct": says_value(answer, truth, synonyms)}


def refusal_verdicts(judge: Judge | None, queries: Sequence[str], answers: Sequence[str]) -> list[bool | None]:
    """A judge's verdict on each answer; None each without a judge.

    Raises:
        DataFormatError: it does not give one verdict, true or false, for each answer.
    """
    if judge is None:
        return [None] * len(answers)
    verdicts = list(judge(queries, answers))
    if len(verdicts) != len(answers):
        raise DataFormatError(
            f"the judge gave {len(verdicts)} verdicts on {len(answers)} answers; it has to give one each"
        )
    for place, verdict in enumerate(verdicts):
        # a word such as "no" is truthy, and would be counted as a refusal
        if verdict not in (0, 1):
            raise DataFormatError(f"the judge's verdict {place} is {verdict!r}; expected True or False")
    return [bool(verdict) for verdict in verdicts]
