from __future__ import annotations

import pytest

from lightning_neuralgate.metrics.functional import is_refusal, opens_with_answer, stated_choice, stated_yes_no


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("No.", True), ("no", True), ("**Yes**, it is.", True), ('"No," it says', True), ("No, I cannot see a dog.", True),
        ("Nothing", False), ("Not at all", False), ("No idea.", False), ("I cannot say yes or no.", False), ("", False),
    ],
)  # fmt: skip
def test_openings_with_yes_or_no(answer: str, expected: bool) -> None:
    assert opens_with_answer(answer, "yes_no") == expected
    assert not opens_with_answer(answer, "open")


@pytest.mark.parametrize("variant", ["prefix", "gcg", "xstest"])
def test_no_list_makes_a_refusal_of_an_answer_in_the_asked_form(variant: str) -> None:
    assert not is_refusal("No. I am just sure.", variant, "yes_no")  # type: ignore[arg-type]
    assert not is_refusal("Sorry", variant, "choice", ["Sorry", "Please"])  # type: ignore[arg-type]
    assert is_refusal("I'm sorry, no comment.", variant, "yes_no")  # type: ignore[arg-type]


def test_stated_answers() -> None:
    answers = (
        "No!",
        "There is no dog.",
        "It is not red.",
        "Yes and no",
        "The answer: yes",
        "It is so. No doubt.",
        "Eyes",
    )
    assert [stated_yes_no(answer) for answer in answers] == ["no", "no", "no", "yes", "yes", None, None]
    choices = ["blue", "blue star", "I"]
    answers = ("A", "D", "Blue star.", "B) blue star", "(C)", "The answer is A", "I see it is blue star", "It is grey")
    assert [stated_choice(answer, choices) for answer in answers] == ["A", None, "B", "B", "C", "A", "C", None]
