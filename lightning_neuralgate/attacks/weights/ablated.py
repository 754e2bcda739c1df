"""The direction that tells refused from answered questions is removed from the weights.

Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction" (NeurIPS 2024, arXiv:2406.11717).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_neuralgate.attacks.base import AttackNotApplicable, Context, Question, WeightAttack
from lightning_neuralgate.attacks.weights.changing import (
    changeable_model,
    decoder_of,
    every_second,
    linear_layers,
    matrix,
    only_training,
    plain_row,
    restored,
)
from lightning_neuralgate.data.collator import PrivacyPairCollator
from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.hf.decoder import DecoderLayout
from lightning_neuralgate.hf.forward import last_logits, model_inputs
from lightning_neuralgate.hf.hooks import capture_outputs

# Paths in a decoder layer: `self_attn.o_proj`, `attn.c_proj`, `self_attention.dense`, `linear_attn.out_proj`, ...
_ATTENTION_OUTPUT: Final = re.compile(
    r"(attn|attention|mixer|mamba|conv).*\.(o_proj|out_proj|c_proj|dense|wo|o)$", re.I
)


class Ablated(WeightAttack):
    """Orthogonalize all attention and MLP output projections of the decoder against the refusal direction.

    The direction r is the mean hidden state over sensitive minus that over benign questions, in the edited model, at the last
    token of the prompt, which predicts the first token of the answer. Every second question of either kind is used, and not
    scored. The embeddings are not changed.

    r is measured at the outputs of all layers in the middle third, and taken from the one with the largest ||r|| / mean
    ||hidden state||. (Arditi et al. compare layers by the refusals that remain, which takes many more answers.)

    The further figures are that `layer`, and `difference`, the ratio.
    """

    name = "ablated"
    suite = "full"
    clause = "when the refusal direction is removed from the weights"

    def skips(self, question: Question, context: Context) -> bool:
        """Return whether the direction is computed from the question."""
        return question in every_second(context.questions, question.sensitive)

    @contextmanager
    def changed(self, model: Any, processor: Any, context: Context) -> Iterator[Mapping[str, float]]:
        """Remove the direction.

        Raises:
            AttackNotApplicable: see `changeable_model` and `decoder_of`; a layer's output projections are not found, or there
                are no sensitive or no benign questions.
        """
        model = changeable_model(model)
        layout = decoder_of(model)
        projections = list(linear_layers(output_projections(layout)))
        sensitive, benign = (every_second(context.questions, kind) for kind in (True, False))
        if not sensitive or not benign:
            raise AttackNotApplicable("the refusal direction needs sensitive and benign questions")
        layer, direction, difference = refusal_direction(model, processor, layout, sensitive, benign)
        with restored() as keep:
            for projection in projections:
                keep(projection.weight)
                _remove(matrix(projection), direction)
                if projection.bias is not None:
                    keep(projection.bias)
                    _remove(projection.bias.detach(), direction)
            yield {"layer": layer, "difference": difference}


def refusal_direction(
    model: PreTrainedModel,
    processor: Any,
    layout: DecoderLayout,
    sensitive: Sequence[Question],
    benign: Sequence[Question],
) -> tuple[int, Tensor, float]:
    """Return the layer, the refusal direction there, (d,) of norm 1, and its relative size; see `Ablated`."""
    count = layout.num_layers
    layers = range(count // 3, max(2 * count // 3, count // 3 + 1))
    states = [_last_states(model, processor, layout, layers, questions) for questions in (sensitive, benign)]
    differences = states[0].mean(0) - states[1].mean(0)
    sizes = differences.norm(dim=-1) / torch.cat(states).norm(dim=-1).mean(0)
    best = int(sizes.argmax())
    if not sizes[best] > 0:
        raise AttackNotApplicable("the hidden states of sensitive and benign questions do not differ")
    return layers[best], differences[best] / differences[best].norm(), float(sizes[best])


@torch.no_grad()
def _last_states(
    model: PreTrainedModel, processor: Any, layout: DecoderLayout, layers: Sequence[int], questions: Sequence[Question]
) -> Tensor:
    """Return the outputs of some layers at the last token of each prompt, (questions, layers, d) in float32."""
    collate = PrivacyPairCollator(processor)
    states = []
    with only_training(model), capture_outputs(layout.layers, layers) as outputs:
        for question in questions:
            batch = model_inputs(collate([plain_row(question)]))
            inputs = {key: value.to(model.device) for key, value in batch.items()}
            last_logits(model, {**inputs, "use_cache": False}, 1)
            states.append(torch.stack([outputs[layer][0, -1].float().cpu() for layer in layers]))
    return torch.stack(states)


def output_projections(layout: DecoderLayout) -> Iterator[nn.Module]:
    """Yield the modules that write attention and MLP outputs to the residual stream, layer by layer."""
    for index, layer in enumerate(layout.layers):
        linear = {part for part in linear_layers([layer]) if len(matrix(part)) == layout.hidden_size}
        attention = [part for name, part in layer.named_modules() if part in linear and _ATTENTION_OUTPUT.search(name)]
        if not attention:
            names = ", ".join(name for name, part in layer.named_modules() if part in linear)
            raise AttackNotApplicable(
                f"layer {index} has no attention output projection; its linear layers are {names}"
            )
        yield from attention
        try:
            yield layout.output_projection(index)
        except ModelLayoutError as error:
            raise AttackNotApplicable(str(error)) from error


def _remove(values: Tensor, direction: Tensor) -> None:
    """Subtract the component along a direction, (d,), from a bias, (d,), or a matrix's columns, (d, n), in place."""
    exact = values.float()
    direction = direction.to(values.device)
    values.copy_(exact - direction.view(-1, *[1] * (values.ndim - 1)) * (direction @ exact))
