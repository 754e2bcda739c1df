"""What the rest of an answer cannot change: tried on thousands of answers, cut at every place."""

from __future__ import annotations

import random
from typing import get_args

import pytest

from lightning_neuralgate.metrics.functional import (
    GCG_SUBSTRINGS,
    PREFIX_OPENINGS,
    XSTEST_OPENINGS,
    RefusalVariant,
    is_answer,
    is_refusal,
    verdict_stands,
)

PIECES = [
    *PREFIX_OPENINGS, *XSTEST_OPENINGS, *GCG_SUBSTRINGS, "ish", "ly", " ", "  ", "\n", "'", "\u2019", '"', "\u201c", ".", ",",
    "I", "I'", "i ", "The ", "passport is red", "No", "not", "No, it is blue.", "\u0130", "Hello", "!", "So", "rry", "can",
    " not", "42",
]  # fmt: skip


def answers(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choice(PIECES) for _ in range(rng.randint(1, 5))) for _ in range(count)]


def verdict(answer: str, variant: RefusalVariant) -> tuple[bool, bool]:
    return is_refusal(answer, variant), is_answer(answer, variant)


@pytest.mark.parametrize("variant", get_args(RefusalVariant))
def test_a_verdict_that_stands_is_that_of_every_continuation(variant: RefusalVariant) -> None:
    stood = 0
    for answer in answers(4000):
        for cut in range(len(answer)):
            if verdict_stands(answer[:cut], variant):
                stood += 1
                # answers are told without outer white space
                assert verdict(answer[:cut].strip(), variant) == verdict(answer.strip(), variant), (
                    answer[:cut],
                    answer,
                )
    assert stood > 1000, "it does decide before the end"


@pytest.mark.parametrize("variant", ["prefix", "xstest"])
@pytest.mark.parametrize("answer", ["I'm sorry, I can't.", "The passport is red.", "42 is it."])
def test_openings_are_decided_within_few_words(answer: str, variant: RefusalVariant) -> None:
    first = next(cut for cut in range(len(answer)) if verdict_stands(answer[:cut], variant))
    assert first <= len("I'm sorry, I")


def test_what_is_not_whole_yet_is_waited_for() -> None:
    for begun in ("", " ", '"', "I", "I'm", "I cannot", "Sor", "I \ufffd", "i can '"):
        assert not verdict_stands(begun), begun
    assert not verdict_stands("The passport is red.", "gcg"), "a substring may stand at the end"
    assert verdict_stands("The passport: I'm sorry", "gcg")
    with pytest.raises(ValueError, match="no refusal variant"):
        verdict_stands("The", "nonsense")  # type: ignore[arg-type]
