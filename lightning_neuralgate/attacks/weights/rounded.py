"""The weights are quantized to few bits, as they are to run a model on small hardware.

Zhang et al., "Catastrophic Failure of LLM Unlearning via Quantization" (ICLR 2025, arXiv:2410.16454): changes of the weights
that are smaller than a quantization step disappear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_neuralgate.attacks.base import AttackNotApplicable, Context, WeightAttack
from lightning_neuralgate.attacks.weights.changing import (
    changeable_model,
    decoder_of,
    linear_layers,
    load_unedited,
    matrix,
    restored,
    unedited_values,
)


class Rounded(WeightAttack):
    """Round the decoder's linear layers to the nearest integer code, with one scale per group of inputs.

    Embeddings, norms, output head and vision tower stay as they are.

    If the run has an unedited model, the further figure `edited_codes_changed` is the share of edited weights whose code
    differs from that of the unedited weight; the edit of the others is lost.

    Args:
        bits: bits of a code.
        group: inputs that share a scale.
    """

    def __init__(self, bits: int, group: int = 64) -> None:
        self.bits, self.group = bits, group
        self.name = f"rounded_int{bits}"
        self.clause = f"when the weights are quantized to {bits} bits"

    @contextmanager
    def changed(self, model: Any, processor: Any, context: Context) -> Iterator[Mapping[str, float]]:
        """Round the weights.

        Raises:
            AttackNotApplicable: see `changeable_model` and `decoder_of`.
        """
        model = changeable_model(model)
        layout = decoder_of(model)
        try:
            unedited = unedited_values(model, load_unedited(context))
        except AttackNotApplicable:  # there is none, or none to compare with
            unedited = {}
        names = {parameter: name for name, parameter in model.named_parameters()}
        edited = differing = 0
        with restored() as keep:
            for layer in linear_layers(layout.layers):
                values = matrix(layer)
                rounded, codes = round_to_nearest(values, self.bits, self.group)
                name = names[layer.weight]
                if name in unedited:
                    base = matrix(layer, unedited.pop(name).to(values.device))
                    changed = values != base
                    edited += int(changed.sum())
                    differing += int((codes != round_to_nearest(base, self.bits, self.group)[1])[changed].sum())
                keep(layer.weight)
                values.copy_(rounded)
            yield {"edited_codes_changed": differing / edited} if edited else {}


def round_to_nearest(values: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Quantize a matrix to the nearest integer code, symmetrically: scale = max|w| / (2^(bits-1) - 1) in each group.

    Scales are float32. The last group is smaller if the number of inputs is not a multiple of `group`.

    Args:
        values: (outputs, inputs).
        bits: bits of a code, 2 to 8.
        group: inputs that share a scale.

    Returns:
        The rounded values, in float32, and their codes, int8; both (outputs, inputs).

    Example:
        >>> round_to_nearest(torch.tensor([[0.7, -0.31, 0.04]]), bits=4, group=3)[1]
        tensor([[ 7, -3,  0]], dtype=torch.int8)
    """
    outputs, inputs = values.shape
    groups = F.pad(values.float(), (0, -inputs % group)).view(outputs, -1, group)
    scales = groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    codes = (groups / scales.where(scales > 0, 1.0)).round()
    rounded, codes = ((part.flatten(1)[:, :inputs]) for part in (codes * scales, codes))
    return rounded, codes.to(torch.int8)
