"""Keys and outputs at one token of each row: what closed-form edits of a projection are solved from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.gate.spans import last_position
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import IGNORED, last_logits, model_inputs
from lightning_neuralgate.hf.hooks import capture_outputs

KeyPosition = Literal["subject", "last"]
"""The subject's last token, or the last token of the prompt."""
_BATCH_SIZE = 16


class TokenStates(NamedTuple):
    """States at the key's token of n rows, float64 on the model's device.

    Attributes:
        keys: layer -> inputs of the MLP output projection, (n, f).
        outputs: outputs of the highest layer, (n, d).
    """

    keys: dict[int, Tensor]
    outputs: Tensor


def key_positions(batch: Mapping[str, Any], position: KeyPosition) -> Tensor:
    """Return the key's token of each row of a batch with subjects and targets, (B, T) bool."""
    if position == "subject":
        return last_position(batch["subject_mask"])
    first = (batch["labels"] != IGNORED).long().argmax(1)
    columns = torch.arange(batch["labels"].shape[1], device=first.device)
    return columns == first[:, None] - 1


@torch.no_grad()
def token_states(
    model: nn.Module, processor: Any, rows: Sequence[QueryRow], layers: Sequence[int], position: KeyPosition
) -> TokenStates:
    """Return the states of rows with targets, with the model's weights as they are.

    Args:
        model: the Hugging Face model.
        processor: its processor.
        rows: the rows.
        layers: layers whose keys are needed, in ascending order; the outputs are those of the last one.
        position: the key's token.
    """
    layout, collate = find_decoder(model), PrivacyPairCollator(processor)
    device = next(model.parameters()).device
    keys: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    outputs: list[Tensor] = []
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = collate(rows[start : start + _BATCH_SIZE])
        where = key_positions(batch, position).to(device)
        inputs = {name: value.to(device) for name, value in model_inputs(batch).items()}
        with ExitStack() as hooks:
            for layer in layers:
                handle = layout.output_projection(layer).register_forward_pre_hook(_collector(keys[layer], where))
                hooks.callback(handle.remove)
            captured = hooks.enter_context(capture_outputs(layout.layers, [layers[-1]]))
            last_logits(model, {**inputs, "use_cache": False}, 1)
            outputs.append(captured[layers[-1]][where].double())
    return TokenStates({layer: torch.cat(values) for layer, values in keys.items()}, torch.cat(outputs))


def _collector(found: list[Tensor], where: Tensor) -> Any:
    def collect(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0].reshape(*where.shape, -1)[where].double())

    return collect
