"""Outputs of decoder layers: during training, and pooled over some tokens of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import IGNORED, last_logits, model_inputs
from lightning_neuralgate.hf.hooks import capture_outputs, stop_before
from lightning_neuralgate.methods.prompt_tokens import PromptTokens, mean_over, watched_tokens

Pool = Literal["target", "text", "last"]
"""Mean over the target's tokens, or over the prompt's text behind the last picture, or the prompt's last token alone."""
_BATCH_SIZE = 16


def layers_from(model: nn.Module, first: int, count: int) -> list[int]:
    """Return decoder layers from the first one on, as many as there are up to a count.

    Raises:
        ModelLayoutError: the model has no such first layer.
    """
    layout = find_decoder(model)
    layout.layer(first)
    return list(range(first, min(first + count, layout.num_layers)))


def layer_states(model: nn.Module, batch: Mapping[str, Any], layers: Sequence[int]) -> dict[int, Tensor]:
    """Return the outputs of some layers for all tokens of a batch: layer -> (B, T, d), with gradient.

    Layers above the highest one are not run.
    """
    decoder = find_decoder(model).layers
    top = max(layers) + 1
    above = stop_before(decoder[top]) if top < len(decoder) else nullcontext()
    with capture_outputs(decoder, layers) as outputs, above:
        last_logits(model, {**model_inputs(batch), "use_cache": False}, 1)
    return outputs


@torch.no_grad()
def pooled_states(
    model: nn.Module, processor: Any, rows: Sequence[QueryRow], layers: Sequence[int], pool: Pool
) -> dict[int, Tensor]:
    """Return the outputs of some layers, pooled over some tokens of each row: layer -> (n, d) float64.

    Args:
        model: the Hugging Face model.
        processor: its processor.
        rows: the rows, with targets for the pool `target`; other pools leave targets out.
        layers: the layers.
        pool: which tokens.
    """
    collate = PrivacyPairCollator(processor)
    device = next(model.parameters()).device
    if pool != "target":
        rows = [replace(row, target=None) for row in rows]
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in collate(rows[start : start + _BATCH_SIZE]).items()
        }
        with watched_tokens(model) as watch:
            states = layer_states(model, batch, layers)
        for layer, values in states.items():
            found[layer].append(_pooled(values.double(), watch.tokens, batch["labels"], pool))
    return {layer: torch.cat(values) for layer, values in found.items()}


def _pooled(values: Tensor, tokens: PromptTokens, labels: Tensor, pool: Pool) -> Tensor:
    if pool == "last":
        return tokens.last(values)
    return mean_over(values, labels != IGNORED if pool == "target" else tokens.text)
