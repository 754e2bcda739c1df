"""POPE's verdict rule and figures."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional import is_refusal, pope, pope_verdict
from tests.helpers.random_answers import random_answers

# answer -> official verdict, and whether it is only the default
VERDICTS: dict[str, tuple[str, bool]] = {
    "Yes": ("yes", False),
    "yes, there is": ("yes", False),
    "YES!": ("yes", False),
    "No": ("no", False),
    "No, there is not.": ("no", False),
    "no": ("no", False),
    "There is no dog": ("no", False),
    "It is not here.": ("no", False),
    # a refusal counts as yes
    "I'm sorry, I can't tell.": ("yes", True),
    "I cannot answer.": ("yes", True),
    "Sorry. No comment.": ("yes", True),
    # so does an empty answer
    "": ("yes", True),
    ". No": ("yes", True),
    # the cut at the first period
    "There is a dog. No cat.": ("yes", True),
    "Yes. Not a cat though.": ("yes", False),
    "No. Yes.": ("no", False),
    "The picture, shot at 2.5 m, has no dog": ("yes", True),
    # only these three tokens mean no, case-sensitive and between spaces
    "NO": ("yes", True),
    "Not really": ("yes", True),
    "No!": ("yes", True),
    "No\nthere is none": ("yes", True),
    '"No"': ("yes", True),
    "There isn't": ("yes", True),
    "nope": ("yes", True),
    # commas are dropped without a space
    "No,there": ("yes", True),
    "n,o": ("no", False),
    ",No,": ("no", False),
    # a no beats a yes
    "Yes and no": ("no", False),
    "Yes, it is not a cat": ("no", False),
    "eyes": ("yes", True),
}


@pytest.mark.parametrize("answer", VERDICTS)
def test_verdicts_match_hand_labels(answer: str) -> None:
    verdict, unparsed = VERDICTS[answer]
    assert pope_verdict(answer) == verdict
    assert pope(answer, "yes").unparsed == unparsed
    assert pope(answer, "yes").yes_ratio == (verdict == "yes")


def test_figures_match_hand_counts() -> None:
    answers = ["Yes.", "Yes.", "Yes.", "No.", "No.", "Yes.", "No.", "I'm sorry, I can't tell."]
    labels = ["yes", "yes", "yes", "yes", "no", "no", "no", "no"]
    # 3 of 5 predicted yes and 2 of 3 predicted no are right
    scores = pope(answers, labels)
    assert scores.accuracy == 5 / 8
    assert scores.precision == 3 / 5
    assert scores.recall == 3 / 4
    assert scores.f1 == pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))
    assert scores.yes_ratio == 5 / 8
    assert (scores.refused, scores.unparsed, scores.n) == (1 / 8, 1 / 8, 8)
    assert scores.refusal_aware_accuracy == 5 / 8, "the refusal was wrong already"


def test_a_refusal_counts_as_yes_but_is_never_right_when_refusal_aware() -> None:
    refusal = "I'm sorry, I can't tell."
    answered = pope([refusal] * 4, ["yes", "yes", "yes", "no"])
    assert answered.accuracy == 3 / 4, "the official rule rewards it"
    assert answered.recall == answered.yes_ratio == answered.refused == answered.unparsed == 1
    assert answered.refusal_aware_accuracy == 0


@pytest.mark.parametrize(
    ("answer", "labels"),
    [("No.", ["yes", "no"]), ("Yes.", ["no", "no"]), ("No.", ["no", "no"])],
    ids=["no predicted yes", "no labelled yes", "neither"],
)
def test_zero_denominators_give_zero(answer: str, labels: list[str]) -> None:
    scores = pope([answer] * 2, labels)
    assert (scores.precision, scores.recall, scores.f1) == (0, 0, 0)


def test_figures_over_zero_answers_are_nan() -> None:
    scores = pope([], [])
    assert scores.n == 0
    assert all(math.isnan(value) for value in scores[:-1])


def test_refusals_can_come_from_another_judge() -> None:
    answers, labels = ["I do not see a dog.", "No, there is none.", "That stays private."], ["no", "no", "yes"]
    assert pope(answers, labels).refused == 1 / 3, "prefix counts the first as a refusal"
    assert pope(answers, labels, "xstest").refused == 0, "the second opens with the answer, whatever xstest says"
    judged = pope(answers, labels, [False, False, True])
    assert (judged.accuracy, judged.refused, judged.refusal_aware_accuracy) == (1, 1 / 3, 2 / 3)


@pytest.mark.parametrize(
    ("answers", "labels", "refusals", "message"),
    [
        (["Yes."], ["maybe"], "prefix", "`labels` value 0 is 'maybe'; expected 'yes' or 'no'"),
        (["Yes.", "No."], ["yes"], "prefix", "2 in `answers`, 1 in `labels`"),
        ([None], ["yes"], "prefix", "answer 0 is None"),
        (["Yes."], [True], "prefix", "`labels` value 0 is True"),
        (["Yes."], ["yes"], [True, False], "1 answers and 2 verdicts"),
        (["Yes."], ["yes"], ["no"], "verdict 0 is 'no'"),
    ],
)
def test_invalid_input_raises(answers: Any, labels: Any, refusals: Any, message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        pope(answers, labels, refusals)


def test_unknown_variant_raises() -> None:
    with pytest.raises(ValueError, match="unknown refusal variant 'longformer'"):
        pope(["Yes."], ["yes"], "longformer")  # type: ignore[arg-type]


def official(answers: list[str], labels: list[str]) -> dict[str, float]:
    """Return the official figures, implemented from the script's description."""
    tp = tn = fp = fn = 0
    for answer, label in zip(answers, labels, strict=True):
        first = ""
        for character in answer:
            if character == ".":
                break
            if character != ",":
                first += character
        verdict = "yes"
        token = ""
        for character in first + " ":
            if character != " ":
                token += character
                continue
            if token in ("No", "not", "no"):
                verdict = "no"
            token = ""
        if label == "yes":
            tp, fn = tp + (verdict == "yes"), fn + (verdict == "no")
        else:
            fp, tn = fp + (verdict == "yes"), tn + (verdict == "no")
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": (tp + fp) / len(answers),
    }


@pytest.mark.parametrize("seed", range(20))
def test_equals_an_independent_implementation_on_random_answers(seed: int) -> None:
    answers = random_answers(300, seed)
    labels = random.Random(seed).choices(("yes", "no"), k=300)
    scores = pope(answers, labels)._asdict()
    for name, value in official(answers, labels).items():
        assert scores[name] == pytest.approx(value, abs=1e-12), name
    right = [
        not is_refusal(answer) and official([answer, "yes", "yes"], [label, "yes", "yes"])["accuracy"] == 1
        for answer, label in zip(answers, labels, strict=True)
    ]
    assert scores["refusal_aware_accuracy"] == sum(right) / 300
