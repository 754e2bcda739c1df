"""`evaluate`: a model's judged answers to the queries of PrivacyPair records, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.records import PrivacyRecord
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.evaluation.answers import JudgedAnswer
from lightning_neuralgate.evaluation.rates import UNTIL_DECIDED, Judge, judge_answer, refusal_verdicts
from lightning_neuralgate.metrics.functional import RefusalVariant, is_refusal, verdict_stands
from lightning_neuralgate.tasks.benchmarks.privacy_pair import privacy_pair_items
from lightning_neuralgate.tasks.item import BrokenItems


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
) -> list[JudgedAnswer]:
    """Generate and judge a model's answers to all queries of some splits.

    This is `neuralgate eval --tasks privacy_pair` in memory, without files, resume or several processes. Pass the result to
    `summarize` and `bootstrap_intervals`.

    Args:
        model: the model.
        processor: its processor.
        splits: split name -> records.
        images: folder that the answers' image paths are relative to.
        name: the model's name in the answers, such as "unedited".
        variant: the keyword list that decides which answers refuse.
        max_new_tokens: maximum length of an answer.
        batch_size: queries per batch.
        sampling: arguments of `generate`; greedy if None.
        judge: a second judge of refusals, called once with all answers.
        share_prefixes: compute the prefix that queries about one picture share only once.
        progress: show a progress bar.
        until_decided: end each answer as soon as the rest cannot change the keyword list's verdict. Refusal rates stay the
            same (for greedy answers) in less time. Leaks and correct answers are not judged, since they could follow later.

    Raises:
        UnsupportedSetupError: a second judge together with `until_decided`.
        DataFormatError: a true value or synonym without letters and digits; a judge that does not return one verdict, true
            or false, for each answer.
    """
    if until_decided and judge is not None:
        raise UnsupportedSetupError("a second judge needs complete answers: leave out until_decided, or the judge")
    items = list(privacy_pair_items(splits, images, BrokenItems()))
    rows = [
        QueryRow(
            item.prompt, item.fields["role"], item.picture, item.fields["subject"], record_id=item.fields["record"]
        )
        for item in items
    ]
    answers = answer_rows(
        model,
        processor,
        rows,
        max_new_tokens,
        batch_size,
        sampling,
        f"answers, {name}" if progress else None,
        share_prefixes,
        partial(verdict_stands, variant=variant) if until_decided else None,
    )
    verdicts = refusal_verdicts(judge, [item.prompt for item in items], answers)
    cut = {UNTIL_DECIDED: variant} if until_decided else {}
    return [
        judge_answer(item.answered(answer, **cut), is_refusal(answer, variant), verdict, name)
        for item, answer, verdict in zip(items, answers, verdicts, strict=True)
    ]
