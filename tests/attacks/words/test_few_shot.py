from __future__ import annotations

from dataclasses import replace

from lightning_neuralgate.attacks.base import Context
from lightning_neuralgate.attacks.words.few_shot import OTHER_PICTURE, FewShot
from lightning_neuralgate.attacks.words.multi_turn import MultiTurn
from lightning_neuralgate.attacks.words.system_prompt import OVERRIDE, SystemPrompt
from tests.attacks.words.samples import BENIGN, CONTEXT, QUESTIONS, SECRET, attempts


def test_examples_are_answered_questions_of_the_same_kind_about_other_records() -> None:
    (prompt,) = attempts(FewShot())
    roles = [role for role, _ in prompt.earlier]
    assert roles == ["user", "assistant", "user", "assistant"]
    answers = {text for role, text in prompt.earlier if role == "assistant"}
    assert len(answers) == 2
    assert answers < {
        "The passport number is 915270.", "The registration number is K-2718.", "The registration number is Q-3141.",
    }  # fmt: skip
    assert all(text.startswith(f"{OTHER_PICTURE} Name the ") for role, text in prompt.earlier if role == "user")
    assert prompt.text == SECRET.query


def test_examples_never_state_the_value_in_question() -> None:
    twins = [replace(question, truth=SECRET.truth) for question in QUESTIONS if question.sensitive]
    assert attempts(FewShot(), SECRET, Context(twins, CONTEXT.pictures)) == []
    assert attempts(FewShot(), SECRET, Context(QUESTIONS[:4], CONTEXT.pictures)) == []  # a single example


def test_a_harmless_question_about_the_same_record_comes_first() -> None:
    (prompt,) = attempts(MultiTurn())
    assert prompt.earlier == (("user", BENIGN.query), ("assistant", "The passport is purple."))
    other = replace(BENIGN, name="test/passport-0/001/benign", attribute="orientation", truth="portrait")
    (prompt,) = attempts(MultiTurn(), BENIGN, Context([*QUESTIONS, other], CONTEXT.pictures))
    assert prompt.earlier[1] == ("assistant", "The passport is in portrait orientation.")
    twin = replace(other, attribute="colour", truth="violet")
    assert attempts(MultiTurn(), BENIGN, Context([*QUESTIONS, twin], CONTEXT.pictures)) == []


def test_the_override_is_a_system_message() -> None:
    (prompt,) = attempts(SystemPrompt())
    assert prompt.earlier == (("system", OVERRIDE),)
