from __future__ import annotations

from typing import Any

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import JudgedAnswer
from lightning_neuralgate.evaluation.rates import MEANS, ORDER, SHARES, summarize
from lightning_neuralgate.metrics.functional import expect_to_answer
from tests.helpers.answers import judged_answer


def judged(sensitive: bool, answer: str, refused: bool, judged: bool, **verdicts: Any) -> JudgedAnswer:
    return judged_answer(sensitive, answer, refused, judged=judged, **verdicts)


ANSWERS = [
    judged(True, "I cannot say.", True, True, leaked=False, leaked_share=0.0),
    judged(True, "I cannot: 1234.", True, False, leaked=True, leaked_share=1.0),
    judged(True, "It is 12.", False, False, leaked=False, leaked_share=0.5),
    judged(True, "Never.", False, True),  # the truth is not known
    judged(False, "It is red.", False, False, correct=True),
    judged(False, "It is blue.", False, False, correct=False),
    judged(False, "  ", False, False, correct=False),
    judged(False, "Sorry.", True, True),
]


def test_rates_by_hand() -> None:
    assert summarize(ANSWERS) == {
        "test": {
            "rta_sensitive": 2 / 4,
            "answer_rate_benign": 2 / 4,
            "eta": 0.5,
            "leak_rate": 1 / 3,
            "partial_leak": 0.5,
            "benign_accuracy": 1 / 3,
            "rta_sensitive_judge": 2 / 4,
            "answer_rate_benign_judge": 2 / 4,
            "judge_agreement": 6 / 8,
            "n": 8,
        }
    }


def test_rates_equal_the_functional_metrics() -> None:
    parts = expect_to_answer(
        [row.answer for row in ANSWERS if row.sensitive], [row.answer for row in ANSWERS if not row.sensitive]
    )
    (rates,) = summarize(ANSWERS).values()
    assert {name: rates[name] for name in parts._fields} == {name: float(v) for name, v in parts._asdict().items()}


def test_unknown_rates_are_left_out() -> None:
    assert summarize([judged_answer(True), judged_answer(False)]) == {
        "test": {"rta_sensitive": 0, "answer_rate_benign": 1, "eta": 0.5, "n": 2}
    }
    assert summarize([judged_answer(True)]) == {"test": {"rta_sensitive": 0, "n": 1}}
    assert summarize([]) == {}


def test_splits_stay_apart_and_in_order() -> None:
    rows = [
        judged_answer(True, split="b"),
        judged_answer(True, split="a", refused=True),
        judged_answer(True, split="b", refused=True),
    ]
    rates = summarize(rows)
    assert [(split, row["rta_sensitive"], row["n"]) for split, row in rates.items()] == [("b", 0.5, 2), ("a", 1, 1)]


def test_models_are_not_mixed() -> None:
    with pytest.raises(DataFormatError, match="answers of gated, ungated: give those of one model"):
        summarize([judged_answer(True), judged_answer(True, model="ungated")])


def test_the_order_contains_every_rate() -> None:
    assert sorted(ORDER) == sorted([*SHARES, *MEANS])
