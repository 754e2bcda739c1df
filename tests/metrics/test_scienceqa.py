from __future__ import annotations

import math
import re
from typing import Any

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional import scienceqa, scienceqa_choice
from tests.helpers.random_answers import random_answers

# (answer, number of choices) -> the choice
TRAPS: dict[tuple[str, int], str | None] = {
    ("A", 2): "A",
    ("B", 2): "B",
    ("E", 5): "E",
    # the letter and nothing else
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
    ("The answer is C", 4): None,  # one more character has to follow
    ("The answer is C,", 4): "C",
    ("The answer is Cairo", 4): "C",
    ("The answer is C\n", 4): None,
    ("the answer is C.", 4): None,
    ("The answer is A. The answer is A.", 4): None,
    ("The answer is A. No, The answer is B.", 4): None,
    # the first rule that fits decides, even if its letter is no choice
    ("A. The answer is B.", 4): "A",
    ("C. The answer is B.", 2): None,
    ("F. The answer is B.", 4): "B",
    ("The answer is F. ", 4): None,
    # beyond the choices
    ("C", 2): None,
    ("C", 3): "C",
    ("The answer is E.", 4): None,
    # neither
    ("", 2): None,
    ("I'm sorry, I can't tell.", 2): None,
    ("Paris", 2): None,
}


@pytest.mark.parametrize(("answer", "count"), TRAPS)
def test_choices_by_hand(answer: str, count: int) -> None:
    assert scienceqa_choice(answer, count) == TRAPS[answer, count]


def test_figures_by_hand() -> None:
    answers = ["A", "B. red", "The answer is C.", "B", "A. I cannot tell", "I am unable to tell.", "Paris"]
    truths = ["A", 1, 2, 0, "A", 0, "B"]
    scores = scienceqa(answers, truths, [2, 2, 3, 2, 2, 2, 2], [False] * 4 + [True, True, False])
    assert scores == (4 / 7, 2 / 7, 2 / 7, 3 / 7, 7), "the fifth is right, and refuses"
    assert scienceqa("B", "B", 2).accuracy == 1
    nothing = scienceqa([], [], [])
    assert nothing.n == 0
    assert all(math.isnan(value) for value in nothing[:-1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((["A"], [2], [2]), "`truths` value 0 is 2; expected a letter of AB or its place, 0 to 1"),
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
def test_bad_input_is_named(row: Any, message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        scienceqa(*row)


def parsed(answer: str, count: int) -> str:
    """LLaVA's reading as its description goes, in three steps."""
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
def test_equals_an_independent_reading_over_random_answers(seed: int) -> None:
    answers = random_answers(2000, seed)
    for answer in answers:
        for count in (2, 5):
            assert (scienceqa_choice(answer, count) or "FAILED") == parsed(answer, count), answer
    right = sum(parsed(answer, 3) == "B" for answer in answers)
    assert right > 0
    assert scienceqa(answers, [1] * 2000, [3] * 2000).accuracy == right / 2000
