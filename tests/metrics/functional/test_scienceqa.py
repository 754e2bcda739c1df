"""ScienceQA's choice rule and figures."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional import scienceqa, scienceqa_choice
from tests.helpers.random_answers import random_answers

# (answer, number of choices) -> the choice
CHOICES: dict[tuple[str, int], str | None] = {
    ("A", 2): "A",
    ("B", 2): "B",
    ("E", 5): "E",
    # only the letter
    ("A ", 2): None,
    (" A", 2): None,
    ("A\n", 2): None,
    ("a", 2): None,
    ("A.", 2): None,
    ("(A)", 2): None,
    ("AB", 2): None,
    # a letter, a period and a space
    ("B. Paris", 4): "B",
    ("B. ", 4): "B",
    ("B.Paris", 4): None,
    ("B, Paris", 4): None,
    ("BA. Paris", 4): None,
    # the sentence, once
    ("The answer is C.", 4): "C",
    ("I think. The answer is C. Because A. is not", 4): "C",
    ("The answer is C", 4): None,  # one more character must follow
    ("The answer is C,", 4): "C",
    ("The answer is Cairo", 4): "C",
    ("The answer is C\n", 4): None,
    ("the answer is C.", 4): None,
    ("The answer is A. The answer is A.", 4): None,
    ("The answer is A. No, The answer is B.", 4): None,
    # the first matching rule decides, even if its letter is no choice
    ("A. The answer is B.", 4): "A",
    ("C. The answer is B.", 2): None,
    ("F. The answer is B.", 4): "B",
    ("The answer is F. ", 4): None,
    # beyond the choices
    ("C", 2): None,
    ("C", 3): "C",
    ("The answer is E.", 4): None,
    # no rule matches
    ("", 2): None,
    ("I'm sorry, I can't tell.", 2): None,
    ("Paris", 2): None,
}


@pytest.mark.parametrize(("answer", "count"), CHOICES)
def test_choices_match_hand_labels(answer: str, count: int) -> None:
    assert scienceqa_choice(answer, count) == CHOICES[answer, count]


def test_figures_match_hand_counts() -> None:
    answers = ["A", "B. red", "The answer is C.", "B", "A. I cannot tell", "I am unable to tell.", "Paris"]
    truths = ["A", 1, 2, 0, "A", 0, "B"]
    scores = scienceqa(answers, truths, [2, 2, 3, 2, 2, 2, 2], [False] * 4 + [True, True, False])
    assert scores == (4 / 7, 2 / 7, 2 / 7, 3 / 7, 7), "the fifth is right and a refusal"
    assert scienceqa("B", "B", 2).accuracy == 1
    empty = scienceqa([], [], [])
    assert empty.n == 0
    assert all(math.isnan(value) for value in empty[:-1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((["A"], [2], [2]), "`truths` value 0 is 2; expected a letter of AB or its index, 0 to 1"),
        ((["A"], ["C"], [2]), "`truths` value 0 is 'C'"),
        ((["A"], ["AB"], [2]), "`truths` value 0 is 'AB'"),
        ((["A"], [""], [2]), "`truths` value 0 is ''"),
        ((["A"], [True], [2]), "`truths` value 0 is True"),
        ((["A"], [-1], [2]), "`truths` value 0 is -1"),
        ((["A", "A"], [0, 0], [2, 6]), "`choices_counts` value 1: 6 choices"),
        ((["A"], [0], [0]), "`choices_counts` value 0: 0 choices"),
        ((["A"], [0, 1], [2]), "2 in `truths`"),
        (([None], [0], [2]), "answer 0 is None"),
    ],
)
def test_invalid_input_raises(row: Any, message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        scienceqa(*row)


def official_choice(answer: str, count: int) -> str:
    """Return the choice by LLaVA's rule, implemented from its description."""
    letters = ["A", "B", "C", "D", "E"]
    found = "FAILED"
    if any(answer == letter for letter in letters):
        found = answer
    elif any(answer.startswith(f"{letter}. ") for letter in letters):
        found = answer[0]
    elif len(hits := list(re.finditer(r"The answer is (?P<letter>[A-Z])[^\n]", answer))) == 1:
        found = hits[0]["letter"]
    return found if found in letters[:count] else "FAILED"


@pytest.mark.parametrize("seed", range(5))
def test_equals_an_independent_implementation_on_random_answers(seed: int) -> None:
    answers = random_answers(2000, seed)
    for answer in answers:
        for count in (2, 5):
            assert (scienceqa_choice(answer, count) or "FAILED") == official_choice(answer, count), answer
    right = sum(official_choice(answer, 3) == "B" for answer in answers)
    assert right > 0
    assert scienceqa(answers, [1] * 2000, [3] * 2000).accuracy == right / 2000
