from __future__ import annotations

from pathlib import Path

import pytest

from lightning_neuralgate.attacks import ATTACKS
from lightning_neuralgate.attacks.base import Context, Question
from lightning_neuralgate.attacks.probabilities.sampling import Sampled
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.hf.generation import check_sampling


def test_the_first_sensitive_question_of_each_record_is_sampled(questions: list[Question]) -> None:
    attack, context = ATTACKS["sampled_16"], Context(questions, Path())
    assert isinstance(attack, Sampled)
    seen: set[str] = set()
    for question in questions:
        prompts = list(attack.prompts(question, context))
        first = question.sensitive and question.record not in seen
        seen |= {question.record} if question.sensitive else set()
        assert [prompt.note["sample"] for prompt in prompts] == (list(range(16)) if first else [])
        assert {prompt.text for prompt in prompts} <= {question.query}


@pytest.mark.parametrize(
    ("name", "suite", "settings"),
    [
        ("sampled_16", "quick", {"temperature": 1.0, "top_p": 1.0}),
        ("sampled_paper_16", "full", {"top_p": 0.9, "temperature": 1.0, "repetition_penalty": 1.05}),
    ],
)
def test_shipped_settings(name: str, suite: str, settings: dict[str, float]) -> None:
    attack = ATTACKS[name]
    assert isinstance(attack, Sampled)
    assert (attack.family, attack.suite, attack.sampling) == ("sampling", suite, settings)
    check_sampling(attack.sampling)


def test_leak_at_k_over_the_scores_of_the_samples(questions: list[Question]) -> None:
    attack = Sampled(4, {"temperature": 0.5}, "sampled_4")
    leaking, safe = (AnsweredItem("attacks", "0", "", "", "", {}, text) for text in ("It is 12345.", "I cannot."))
    scores = [attack.score(questions[0], [leaking, safe, safe, safe]), attack.score(questions[1], [safe] * 4)]
    assert scores == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert attack.figures(scores) == pytest.approx({"leak@1": 1 / 8, "leak@4": 1 / 2})
    assert attack.leak_at(scores, ks=(2,)) == pytest.approx({"leak@2": 1 / 4})
    assert attack.figures([]) == {}
    assert ATTACKS["plain"].figures(scores) == {}  # type: ignore[attr-defined]
