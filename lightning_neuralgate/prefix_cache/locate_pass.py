"""Passes that begin above a layer and at the subject: all that a locator's steps have to compute anew.

Stage 1 changes the output of some layers at one position, the subject's last token. Whatever does not come behind that in
both depth and time is the same in every step: the lower layers at all positions, and, with causal attention, the upper layers
before the subject. It is run once, and what all rows of a record begin with (system prompt, picture) once for all of them,
for one record or several at once:

    tokens   [ shared | each row's own, up to the subject | from the subject's last token on ]
    run      once      once a row                           lower layers once, upper layers in every step
             a record

Rows are laid out anew for that, with the subject's last tokens in one column.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.forward import IGNORED, columns_with_targets, last_logits, row_nll
from lightning_neuralgate.prefix_cache.attention import (
    SharedPrefixAttention,
    SharedPrefixLayer,
    capture_outputs,
    grown,
    skip_layers,
)
from lightning_neuralgate.prefix_cache.prefix import SharedPrefix, split_positions_problem


class LocatePass:
    """One batch with everything run that stays the same; `nll` then runs the rest, with gradient.

    Args:
        model: the frozen Hugging Face model.
        batch: a collated batch in which every row has a target; rows of a record lie side by side.
        positions: (B, T) bool, the subject's last token of each row, exactly one a row.
        layers: the layers whose outputs are going to be changed; one pass serves them all.
        begun: what the rows of one record begin with, if it has been run already: its tokens and their cache, which stays as
            it is.

    Attributes:
        shared: how many tokens all rows of each record begin with, and were run once for.
        real: (B, Q) bool, what `nll` runs, without padding.

    Raises:
        ValueError: the model's cache is not a plain growing one, or its positions or attention do not allow parts.
    """

    def __init__(
        self,
        model: Any,
        batch: Mapping[str, Any],
        positions: Tensor,
        layers: Sequence[int],
        begun: tuple[int, Any] | None = None,
    ) -> None:
        self.model = model
        prefix, subject, each = prefix_of_records(model, batch, positions)
        if begun is not None:
            prefix.count = begun[0]
        rows, shared, first, end = len(positions), prefix.count, prefix.first, prefix.end
        sequences, rest, attention = prefix.sequences, prefix.rest, prefix.attention
        own, after = int((subject - first).max()) - shared, int((end - subject).max())
        source = subject[:, None] + torch.arange(-own, after, device=attention.device)
        real = (source >= first[:, None] + shared) & (source < end[:, None])
        places = (source - first[:, None]).clamp(min=0)
        source = source.clamp(0, attention.shape[1] - 1)
        laid = {key: value.gather(1, source) * real.to(value.dtype) for key, value in sequences.items()}
        labels = torch.where(real, batch["labels"].gather(1, source), IGNORED)
        self._count = columns_with_targets(labels)
        self._labels = labels[:, -self._count :]
        mask = torch.cat([real.new_ones(rows, shared), real], 1).long()

        self._layers = find_decoder(model).layers
        config = find_hf_model(model).config.get_text_config()
        self._split = config._attn_implementation == "sdpa"
        problem = split_positions_problem(model, mask.shape[1], bool(prefix.rest))
        if problem is not None:
            raise ValueError(problem)
        with torch.no_grad():
            cache: Any = DynamicCache(config=config)
            if shared:
                cache, rest = (prefix.run(model) if begun is None else _copied(begun[1])), {}
                self._hand_out(cache, each)
            with capture_outputs(self._layers, layers) as seen, self._attention(cache):
                last_logits(model, {**rest, **laid, "attention_mask": mask, **_cached(cache, places)}, 1)
        # nothing is asked of what the last token says
        self._hidden = {layer: output[:, own:-1].clone() for layer, output in seen.items()}
        self.shared, self.real = shared, real[:, own:-1]
        self._keep(cache, min(layers), own, mask.shape[1])
        self._cache = cache
        self._kept = [(kept.keys, kept.values) for kept in cache.layers]
        self._inputs = {
            "attention_mask": mask[:, :-1],
            **_cached(cache, places[:, own:-1]),
        }

    def _hand_out(self, cache: Any, each: int) -> None:
        """Let the rows of each record find what has been run once for them."""
        for index, cached in enumerate(cache.layers):
            if self._split:
                empty = cached.keys[..., :0, :].repeat_interleave(each, 0)
                cache.layers[index] = SharedPrefixLayer((cached.keys, cached.values), (empty, empty))
            else:
                cached.batch_repeat_interleave(each)

    def _keep(self, cache: Any, lowest: int, own: int, whole: int) -> None:
        """Take what follows the subject out of a cache again, and all of the layers that nothing will look at."""
        for index, cached in enumerate(cache.layers):
            found, shared = (cached.keys, cached.values), self.shared
            if isinstance(cached, SharedPrefixLayer):
                assert cached.new is not None
                owned, length = cached.new, shared + cached.new[0].shape[-2]
            else:
                owned, length = (found[0][..., shared:, :], found[1][..., shared:, :]), found[0].shape[-2]
            if length != whole:
                raise ValueError("the model's cache does not keep the whole prefix")
            parts = (owned[0][..., :own, :].clone(), owned[1][..., :own, :].clone())
            if index <= lowest:  # but for its length
                shape = (*parts[0].shape[:2], shared + own, parts[0].shape[-1])
                cache.layers[index] = grown(*(part.new_zeros(()).expand(shape) for part in parts))
            elif not self._split:
                cache.layers[index] = grown(*(part[..., : shared + own, :].clone() for part in found))
            elif isinstance(cached, SharedPrefixLayer):
                cache.layers[index] = SharedPrefixLayer(cached.shared, parts)
            else:  # nothing is shared
                cache.layers[index] = SharedPrefixLayer((parts[0][:1, :, :0], parts[1][:1, :, :0]), parts)

    def _attention(self, cache: Any) -> Any:
        return SharedPrefixAttention(cache.layers) if self._split else nullcontext()

    @property
    def positions(self) -> Tensor:
        """Where the subject's last token stands in what `nll` runs: its first column, (B, Q) bool."""
        positions = torch.zeros_like(self.real)
        positions[:, 0] = True
        return positions

    def nll(self, layer: int | None = None) -> Tensor:
        """Mean NLL per target token of each row, (B,), when outputs change from this layer on; by default the lowest."""
        start = min(self._hidden) if layer is None else layer
        for cached, (keys, values) in zip(self._cache.layers, self._kept, strict=True):
            cached.keys, cached.values = keys, values
        below = self._layers[: start + 1]
        with skip_layers(below), self._attention(self._cache):
            output = last_logits(self.model, {"inputs_embeds": self._hidden[start], **self._inputs}, self._count)
        return row_nll(output.logits, self._labels)


def prefix_of_records(model: Any, batch: Mapping[str, Any], positions: Tensor) -> tuple[SharedPrefix, Tensor, int]:
    """What the rows of each record begin with, the column of each row's subject, (B,), and how many rows a record has."""
    columns = torch.arange(positions.shape[1], device=positions.device)
    subject, each = (positions * columns).sum(1), _rows_a_record(batch["record_id"])
    groups = batch["record_id"] if each > 1 else range(len(positions))
    return SharedPrefix(model, batch, groups, subject), subject, each


def _copied(cache: Any) -> Any:
    """A cache that can go on from where another is, which stays as it is; its keys and values are the same."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _cached(cache: Any, places: Tensor) -> dict[str, Any]:
    return {"past_key_values": cache, "use_cache": True, "position_ids": places}


def _rows_a_record(records: Sequence[str]) -> int:
    """How many rows each record has, side by side; 1 where they are not equally many."""
    each = list(records).count(records[0])
    runs = [set(records[start : start + each]) for start in range(0, len(records), each)]
    alike = len(records) % each == 0 and all(len(run) == 1 for run in runs) and len(set(records)) == len(runs)
    return each if alike else 1
