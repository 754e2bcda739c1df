"""The metrics as pure functions, without state."""

from lightning_neuralgate.metrics.functional.refusal import (
    GCG_SUBSTRINGS,
    PREFIX_OPENINGS,
    XSTEST_OPENINGS,
    ExpectToAnswerParts,
    RefusalVariant,
    answer_rate,
    expect_to_answer,
    is_answer,
    is_refusal,
    refuse_to_answer_rate,
)

__all__ = [
    "GCG_SUBSTRINGS",
    "PREFIX_OPENINGS",
    "XSTEST_OPENINGS",
    "ExpectToAnswerParts",
    "RefusalVariant",
    "answer_rate",
    "expect_to_answer",
    "is_answer",
    "is_refusal",
    "refuse_to_answer_rate",
]
