"""Ask a model every query of the test splits and judge the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_neuralgate.answers import Answer
from lightning_neuralgate.data.answering import answer_rows
from lightning_neuralgate.data.datamodule import question_rows
from lightning_neuralgate.data.records import PrivacyRecord
from lightning_neuralgate.metrics.functional import RefusalVariant, expect_to_answer, is_refusal


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
    """
    asked = [
        (split, record, row) for split, records in splits.items() for record in records for row in question_rows(record)
    ]
    told = answer_rows(
        model, processor, [row for *_, row in asked], max_new_tokens, batch_size, sampling, f"answers, {name}"
    )
    answers = []
    for (split, record, row), answer in zip(asked, told, strict=True):
        sensitive = row.role == "sensitive"
        pair = next(p for p in record.pairs if row.query == (p.sensitive if sensitive else p.benign))
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
                truth=pair.sensitive_truth if sensitive else pair.benign_truth,
            )
        )
    return answers


def summarize(answers: Sequence[Answer], variant: RefusalVariant = "prefix") -> dict[str, dict[str, float]]:
    """Rates per split: split -> `rta_sensitive`, `answer_rate_benign`, `eta` (shares) and `n` (queries)."""
    summary = {}
    for split in dict.fromkeys(answer.split for answer in answers):
        chosen = [answer for answer in answers if answer.split == split]
        parts = expect_to_answer(
            [answer.answer for answer in chosen if answer.sensitive],
            [answer.answer for answer in chosen if not answer.sensitive],
            variant,
        )
        summary[split] = {key: float(value) for key, value in parts._asdict().items()} | {"n": len(chosen)}
    return summary
