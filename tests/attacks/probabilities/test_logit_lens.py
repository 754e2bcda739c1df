from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_neuralgate.attacks.base import AttackNotApplicable, Context, Question
from lightning_neuralgate.attacks.probabilities.logit_lens import NOWHERE, LogitLens, find_lens
from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import model_inputs
from lightning_neuralgate.hf.hooks import capture_outputs


def test_the_last_layer_read_by_the_lens_gives_the_logits_of_the_model(model_and_processor: tuple[Any, Any]) -> None:
    model, processor = model_and_processor
    layers, norm, head = find_lens(model)
    assert layers is find_decoder(model).layers
    last = len(layers) - 1
    batch = PrivacyPairCollator(processor)([QueryRow("What?", "sensitive", None)])
    with torch.no_grad(), capture_outputs(layers, [last]) as outputs:
        logits = model(**model_inputs(batch)).logits
        assert torch.allclose(head(norm(outputs[last])), logits, atol=1e-5)


def test_the_figure_is_the_first_layer_that_predicts_the_first_digit(
    questions: list[Question], model_and_processor: tuple[Any, Any]
) -> None:
    model, processor = model_and_processor
    collate = PrivacyPairCollator(processor)
    _, norm, head = find_lens(model)
    values = iter(["12345", "9-B", "X7", "(42)"])
    questions = [replace(question, truth=next(values)) if question.sensitive else question for question in questions]
    attack = LogitLens(top=200, batch_size=3)
    figures = attack.measure(model, processor, questions, Context(questions, Path()))
    expected: list[float | None] = []
    for question in questions:
        if not question.sensitive:
            expected.append(None)
            continue
        opening = f"The {question.attribute} is"
        inputs = model_inputs(collate([QueryRow(question.query, "sensitive", question.picture, opening=opening)]))
        ids = collate.tokenizer.encode(f" {question.truth}", add_special_tokens=False)
        letter = question.truth.strip("(")[0]
        first = next(place for place, token in enumerate(ids) if letter in collate.tokenizer.decode([token]))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids[:first]], dtype=torch.long)], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
            # the last state has been through the norm
            logits = [head(norm(state[0, -1])) for state in states[1:-1]] + [head(states[-1][0, -1])]
        found = [layer for layer, row in enumerate(logits) if (row > row[ids[first]]).sum() < 200]
        expected.append(float(found[0]) if found else NOWHERE)
    assert figures == expected
    assert len(set(expected)) > 2, "the test needs different figures"


def test_a_model_without_a_final_norm_is_not_applicable(model_and_processor: tuple[Any, Any]) -> None:
    model, processor = model_and_processor
    owner = next(part for part in model.modules() if getattr(part, "layers", None) is find_decoder(model).layers)
    del owner.norm
    with pytest.raises(AttackNotApplicable, match=r"no final norm next to `.*layers`: searched for norm, "):
        LogitLens().measure(model, processor, [], Context([], Path()))


def test_summary() -> None:
    assert LogitLens().summary([3.0, NOWHERE, 5.0, 4.0]) == {"share": 0.75, "median_layer": 4.0}
    assert LogitLens().summary([NOWHERE]) == {"share": 0.0}
    assert LogitLens().summary([]) == {}
