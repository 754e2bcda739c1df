from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.attacks.base import Context, Question
from lightning_neuralgate.attacks.decoys import decoys
from lightning_neuralgate.attacks.probabilities.truth_rank import TruthRankAttack
from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.hf.forward import batch_nll


def nll(model: Any, processor: Any, question: Question, value: str) -> float:
    row = QueryRow(question.query, "sensitive", question.picture, target=value, opening=f"The {question.attribute} is")
    batch = PrivacyPairCollator(processor)([row])
    return float(batch_nll(model, batch).detach() * (batch["labels"] >= 0).sum())


def test_the_figure_is_the_share_of_less_likely_decoys(
    questions: list[Question], model_and_processor: tuple[Any, Any]
) -> None:
    model, processor = model_and_processor
    context = Context(questions, Path())
    figures = TruthRankAttack(20).measure(model, processor, questions, context)
    first = context.first_secrets
    assert [figure is None for figure in figures] == [question.name not in first for question in questions]
    for question, figure in zip(questions, figures, strict=True):
        if question.name in first:
            truth = nll(model, processor, question, question.truth)
            others = [nll(model, processor, question, value) for value in decoys(question, 20, context)]
            assert figure == sum(other > truth for other in others) / 20


def test_modes_and_gradients_are_as_before(questions: list[Question], model_and_processor: tuple[Any, Any]) -> None:
    model, processor = model_and_processor
    part = next(iter(model.children()))
    model.eval()
    part.training = True
    seen = []
    part.register_forward_hook(lambda module, args, output: seen.append(module.training))
    TruthRankAttack(20).measure(model, processor, questions[:1], Context(questions, Path()))
    assert seen
    assert not any(seen)
    assert part.training
    assert not model.training


def test_a_secret_with_hardly_any_decoys_is_not_ranked(
    questions: list[Question], model_and_processor: tuple[Any, Any]
) -> None:
    short = replace(questions[0], truth="7")  # nine other digits
    assert TruthRankAttack().measure(*model_and_processor, [short], Context([short], Path())) == [None]


def test_summary_is_auc_and_exposure() -> None:
    figures = TruthRankAttack(3).summary([1.0, 1 / 3])  # ranks 1 and 3 of 4
    assert figures == pytest.approx({"auc": 2 / 3, "exposure_bits": (2 + math.log2(4 / 3)) / 2})
    assert TruthRankAttack().summary([]) == {}
