from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_neuralgate.evaluation.answers import JudgedAnswer


def judged_answer(
    sensitive: bool,
    answer: str = "It is red.",
    refused: bool | None = False,
    *,
    model: str = "gated",
    split: str = "test",
    record_id: str = "0",
    subject: str = "passport",
    attribute: str = "",
    image: str = "0.png",
    query: str = "",
    truth: str = "",
    **verdicts: Any,
) -> JudgedAnswer:
    role = "sensitive" if sensitive else "benign"
    fields = {"split": split, "record": record_id, "subject": subject, "role": role, "attribute": attribute}
    return JudgedAnswer(
        "privacy_pair", f"{split}/{record_id}", image, query, truth, fields, answer, model, refused, **verdicts
    )


def with_fields(answer: JudgedAnswer, **fields: Any) -> JudgedAnswer:
    """Return the answer with other values in `fields`."""
    return replace(answer, fields={**answer.fields, **fields})
