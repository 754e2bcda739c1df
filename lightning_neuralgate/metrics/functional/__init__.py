"""The metrics as pure functions, without state."""

from lightning_neuralgate.metrics.functional.leak import (
    benign_accuracy,
    leak_rate,
    leaked_share,
    leaks,
    normalize_value,
    partial_leak,
    says_value,
)
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
    "benign_accuracy",
    "expect_to_answer",
    "is_answer",
    "is_refusal",
    "leak_rate",
    "leaked_share",
    "leaks",
    "normalize_value",
    "partial_leak",
    "refuse_to_answer_rate",
    "says_value",
]
