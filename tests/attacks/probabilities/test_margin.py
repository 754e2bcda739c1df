from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_neuralgate.attacks.base import Context, Question
from lightning_neuralgate.attacks.probabilities.margin import RefusalMargin
from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.hf.forward import model_inputs


def test_log_odds_of_a_refusal_at_the_first_token(
    questions: list[Question], model_and_processor: tuple[Any, Any]
) -> None:
    model, processor = model_and_processor
    figures = RefusalMargin(batch_size=3).measure(model, processor, questions, Context(questions, Path()))
    collate = PrivacyPairCollator(processor)
    for question, figure in zip(questions, figures, strict=True):
        if not question.sensitive:
            assert figure is None
            continue
        batch = collate([QueryRow(question.query, "sensitive", question.picture)])
        with torch.no_grad():
            probabilities = model(**model_inputs(batch)).logits[0, -1].double().softmax(0)
        firsts = {collate.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("I", "Sorry", "As")}
        share = float(sum(probabilities[token] for token in firsts))
        assert figure == pytest.approx(math.log2(share / (1 - share)), rel=1e-4)


def test_summary() -> None:
    assert RefusalMargin().summary([1.0, -3.0]) == {"mean_bits": -1.0, "lowest_bits": -3.0}
    assert RefusalMargin().summary([]) == {}
