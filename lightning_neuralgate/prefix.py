"""Reuse of what comes before the subject.

Stage 1 changes one position, the subject's last token. With causal attention everything before it (system prompt,
image, lead-in, most of the query) has the same keys and values in every step, so it is run once and kept. Rows are
laid out anew with the subject's last tokens in one column: prefixes padded on the left, suffixes on the right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_neuralgate.data.collator import IGNORED
from lightning_neuralgate.generation import model_inputs
from lightning_neuralgate.objective import columns_with_targets, last_logits, row_nll


class PrefixReuse:
    """One batch with its prefix run and kept; `nll` then runs the suffix alone, with gradient.

    Args:
        model: the frozen Hugging Face model.
        batch: a collated batch in which every row has a target.
        positions: (B, T) bool, the subject's last token of each row, exactly one a row.

    Raises:
        ValueError: the model's cache is not a plain growing one.
    """

    def __init__(self, model: Any, batch: Mapping[str, Any], positions: Tensor) -> None:
        self.model = model
        source, real, self.start = _aligned(batch["attention_mask"].bool(), positions)
        inputs = model_inputs(batch)
        shape = batch["input_ids"].shape
        sequences = {key for key, value in inputs.items() if value.shape == shape}
        laid = {key: inputs[key].gather(1, source) * real.to(inputs[key].dtype) for key in sequences}
        labels = torch.where(real, batch["labels"].gather(1, source), IGNORED)
        places = (real.long().cumsum(1) - 1).clamp(min=0)
        self._suffix: dict[str, Any] = {
            key: value[:, self.start :] for key, value in laid.items() if key != "attention_mask"
        }
        self._suffix |= {"attention_mask": real.long(), "position_ids": places[:, self.start :], "use_cache": True}
        self._count = columns_with_targets(labels)
        self._labels = labels[:, -self._count :]
        prefix = {key: value[:, : self.start] for key, value in laid.items() if key != "attention_mask"}
        rest = {key: value for key, value in inputs.items() if key not in sequences}
        with torch.no_grad():
            cache = last_logits(
                model,
                {
                    **rest,
                    **prefix,
                    "attention_mask": real[:, : self.start].long(),
                    "position_ids": places[:, : self.start],
                    "use_cache": True,
                },
                1,
            ).past_key_values
        self._cache = cache
        self._kept = [(layer.keys, layer.values) for layer in cache.layers]
        if any(keys.shape[-2] != self.start for keys, _ in self._kept):
            raise ValueError("the model's cache does not keep the whole prefix")

    @property
    def positions(self) -> Tensor:
        """Where the subject's last token stands in the suffix: its first column, (B, Q) bool."""
        positions = torch.zeros_like(self._suffix["position_ids"], dtype=torch.bool)
        positions[:, 0] = True
        return positions

    def nll(self) -> Tensor:
        """Mean NLL per target token of each row, (B,), from a pass over the suffix."""
        for layer, (keys, values) in zip(self._cache.layers, self._kept, strict=True):
            layer.keys, layer.values = keys, values
        output = last_logits(self.model, {**self._suffix, "past_key_values": self._cache}, self._count + 1)
        return row_nll(output.logits, self._labels)


def _aligned(attention: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, int]:
    """Source column and realness of each cell of the new layout, (B, P + Q) each, and the subject's column P."""
    columns = torch.arange(attention.shape[1], device=attention.device)
    subject = (positions * columns).sum(1)
    first = torch.where(attention, columns, attention.shape[1]).amin(1)
    end = torch.where(attention, columns, -1).amax(1) + 1
    before, after = int((subject - first).max()), int((end - subject).max())
    source = subject[:, None] + torch.arange(-before, after, device=attention.device)
    real = (source >= first[:, None]) & (source < end[:, None])
    return source.clamp(0, attention.shape[1] - 1), real, before
