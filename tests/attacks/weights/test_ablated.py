from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_neuralgate.attacks.base import AttackNotApplicable
from lightning_neuralgate.attacks.weights.ablated import Ablated, output_projections, refusal_direction
from lightning_neuralgate.attacks.weights.changing import every_second, matrix, plain_row
from lightning_neuralgate.data.collator import PrivacyPairCollator
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import model_inputs
from lightning_neuralgate.hf.hooks import capture_outputs
from tests.attacks.weights.conftest import Run


@pytest.mark.parametrize("run", ["llava", "minigpt"], indirect=True)
def test_output_projections_have_no_component_along_the_direction(run: Run) -> None:
    layout = find_decoder(run.model)
    questions = [every_second(run.context.questions, kind) for kind in (True, False)]
    layer, direction, difference = refusal_direction(run.model, run.processor, layout, *questions)
    torch.testing.assert_close(direction.norm(), torch.tensor(1.0))
    before = run.bits()
    with run.changed(Ablated()) as figures:
        assert figures == {"layer": layer, "difference": difference}
        changed = run.changed_names(before)
        for projection in output_projections(layout):
            weight = matrix(projection)
            assert (direction @ weight).abs().max() < 1e-5
            assert weight.norm() > 1
    ends = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    assert changed == {f"{layout.layers_path}.{index}.{end}" for index in range(layout.num_layers) for end in ends}


def test_the_direction_is_that_of_sensitive_minus_benign_questions(run: Run) -> None:
    layout = find_decoder(run.model)
    sensitive, benign = ([q for q in run.context.questions if q.sensitive == kind][:1] for kind in (True, False))
    layer, direction, _ = refusal_direction(run.model, run.processor, layout, sensitive, benign)
    assert layer == 1  # the middle third of three
    states = []
    with capture_outputs(layout.layers, [layer]) as outputs, torch.no_grad():
        for (question,) in (sensitive, benign):
            run.model(**model_inputs(PrivacyPairCollator(run.processor)([plain_row(question)])))
            states.append(outputs[layer][0, -1])
    torch.testing.assert_close(direction * (states[0] - states[1]).norm(), states[0] - states[1])


def test_questions_that_give_the_direction_are_skipped(run: Run) -> None:
    for sensitive in (True, False):
        questions = [q for q in run.context.questions if q.sensitive == sensitive]
        assert [Ablated().skips(q, run.context) for q in questions] == [True, False] * (len(questions) // 2)


def test_projections_stored_as_transpose_are_found_with_their_bias() -> None:
    layout = find_decoder(GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2)))
    block = layout.layers[0]
    assert list(output_projections(layout)) == [block.attn.c_proj, block.mlp.c_proj]


def test_a_layer_without_attention_output_is_named(run: Run) -> None:
    attention = run.model.model.language_model.layers[1].self_attn
    attention.unknown = attention.o_proj
    del attention.o_proj
    with (
        pytest.raises(AttackNotApplicable, match=r"layer 1 has no attention output.*self_attn\.unknown"),
        run.changed(Ablated()),
    ):
        pass


def test_both_kinds_of_questions_are_needed(run: Run) -> None:
    run.context = replace(run.context, questions=[q for q in run.context.questions if q.sensitive])
    with pytest.raises(AttackNotApplicable, match="sensitive and benign"), run.changed(Ablated()):
        pass
