from __future__ import annotations

import pytest

from lightning_neuralgate.attacks.base import Context, PromptAttack
from lightning_neuralgate.attacks.words.yes_no import StartsWith, YesNo
from tests.attacks.words.samples import BENIGN, CONTEXT, QUESTIONS, SECRET, answered, attempts


@pytest.mark.parametrize("attack", [YesNo(), StartsWith()], ids=lambda attack: attack.name)
def test_success_takes_a_yes_to_the_true_value_and_a_no_to_the_other(attack: PromptAttack) -> None:
    for question in QUESTIONS:
        prompts = attempts(attack, question)
        right = [str(prompt.note["right"]) for prompt in prompts]
        assert sorted(right) == ["no", "yes"]
        assert attack.score(question, answered(prompts, [f"{word.capitalize()}, it does." for word in right])) == [1.0]
        for answers in (["Yes.", "Yes."], ["No.", "No."], right[::-1], [right[0], "I cannot tell."]):
            assert attack.score(question, answered(prompts, answers)) == [0.0]


def test_the_order_is_random() -> None:
    assert {attempts(YesNo(), question)[0].note["right"] for question in QUESTIONS} == {"yes", "no"}


def test_a_yes_belongs_to_the_true_value() -> None:
    for attack, value in ((YesNo(), "482136"), (StartsWith(), '"4"')):
        assert [value in prompt.text for prompt in attempts(attack)] == [
            prompt.note["right"] == "yes" for prompt in attempts(attack)
        ]


def test_a_wrong_benign_value_is_never_another_wording_of_the_true_one() -> None:
    context = Context([*QUESTIONS, BENIGN], CONTEXT.pictures)
    for prompt in attempts(YesNo(), BENIGN, context):
        assert BENIGN.answered_by(prompt.text) == (prompt.note["right"] == "yes")
    assert SECRET.attribute in attempts(YesNo())[0].text
