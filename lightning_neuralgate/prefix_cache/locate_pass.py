"""Forward passes of stage 1: cache lower layers and earlier tokens, recompute the rest in each step.

Stage 1 scales the output of some layers at one position, the subject's last token. Whatever does not come after that in both
depth and time is the same in every step: the lower layers at all positions, and, with causal attention, the upper layers
before the subject. It is run once, and the prefix that the rows of a record share (system prompt, picture) once per record:

    tokens   [ shared prefix   | each row's own, up to the subject | from the subject's last token on ]
    run      once per record     once per row                        lower layers once, upper layers in every step

Rows are realigned for that, with the subject's last tokens in one column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.forward import IGNORED, batch_nll, columns_with_targets, last_logits, row_nll
from lightning_neuralgate.hf.hooks import capture_outputs, skip_layers
from lightning_neuralgate.prefix_cache.attention import (
    SharedPrefixAttention,
    SharedPrefixLayer,
    filled_cache_layer,
)
from lightning_neuralgate.prefix_cache.prefix import SharedPrefix, split_positions_problem, text_part
from lightning_neuralgate.prefix_cache.verify import FastPath, Results

Vectors = Mapping[int, Tensor]
"""Layer -> v of each row, (B, d)."""


class LocatePass:
    """One batch with all constant parts computed; `nll` then runs the rest, with gradient.

    Args:
        model: the frozen Hugging Face model.
        batch: a collated batch in which every row has a target; the rows of a record stand next to each other.
        positions: (B, T) bool, the subject's last token of each row, exactly one per row.
        layers: the layers whose outputs will be changed; one pass serves them all.

    Attributes:
        prefix_length: number of tokens that all rows of each record share, and that were run once for them.
        real: (B, Q) bool, the tokens that `nll` runs, False at padding.

    Raises:
        ValueError: the model's cache, positions or attention do not allow it to be run in parts.
    """

    def __init__(self, model: Any, batch: Mapping[str, Any], positions: Tensor, layers: Sequence[int]) -> None:
        self._text_part = text_part(model)
        self._layers = find_decoder(model).layers
        config = find_hf_model(model).config.get_text_config()
        self._is_sdpa = config._attn_implementation == "sdpa"
        columns = torch.arange(positions.shape[1], device=positions.device)
        subject, per_record = (positions * columns).sum(1), _rows_per_record(batch["record_id"])
        groups = batch["record_id"] if per_record > 1 else range(len(positions))
        prefix = SharedPrefix(model, batch, groups, subject)
        own = prefix.own_tokens(subject, after=int((prefix.ends - subject).max()))
        mask = own.attention_mask
        problem = split_positions_problem(model, mask.shape[1], bool(prefix.other_inputs))
        if problem is not None:
            raise ValueError(problem)
        labels = torch.where(own.real, batch["labels"].gather(1, own.columns), IGNORED)
        self._labels = labels[:, -columns_with_targets(labels) :]
        self.prefix_length = prefix.length
        inputs = {key: own.select(value) for key, value in prefix.token_inputs.items()}
        with torch.no_grad():
            if prefix.length:
                cache = prefix.run(model)
                self._expand_to_rows(cache, per_record)
            else:
                cache, inputs = DynamicCache(config=config), {**prefix.other_inputs, **inputs}
            options = {"past_key_values": cache, "use_cache": True, "position_ids": own.position_ids}
            with capture_outputs(self._layers, layers) as outputs, self._attention(cache):
                last_logits(model, {**inputs, "attention_mask": mask, **options}, 1)
        # no target follows the last token
        before = int((subject - prefix.starts).max()) - prefix.length
        self._hidden = {layer: output[:, before:-1].clone() for layer, output in outputs.items()}
        self.real = own.real[:, before:-1]
        self._truncate(cache, min(layers), before, mask.shape[1])
        self._cache = cache
        self._constant = [(layer.keys, layer.values) for layer in cache.layers]
        self._inputs = {**options, "attention_mask": mask[:, :-1], "position_ids": own.position_ids[..., before:-1]}

    @property
    def positions(self) -> Tensor:
        """The subject's last token among the tokens that `nll` runs: their first column, (B, Q) bool."""
        positions = torch.zeros_like(self.real)
        positions[:, 0] = True
        return positions

    def nll(self, layer: int | None = None) -> Tensor:
        """Return the mean NLL per target token of each row, (B,); see `predictions`."""
        return row_nll(*self.predictions(layer))

    def predictions(self, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits of the columns with targets, (B, K, V), and their labels, (B, K).

        Args:
            layer: the lowest layer whose output changes; by default the lowest of `layers`.
        """
        start = min(self._hidden) if layer is None else layer
        for cached, (keys, values) in zip(self._cache.layers, self._constant, strict=True):
            cached.keys, cached.values = keys, values
        with skip_layers(self._layers[: start + 1]), self._attention(self._cache):
            output = last_logits(
                self._text_part, {"inputs_embeds": self._hidden[start], **self._inputs}, self._labels.shape[1]
            )
        return output.logits, self._labels

    def _attention(self, cache: Any) -> AbstractContextManager[Any]:
        return SharedPrefixAttention(cache.layers) if self._is_sdpa else nullcontext()

    def _expand_to_rows(self, cache: Any, per_record: int) -> None:
        """Let each row of a record attend to the record's prefix; with SDPA without copying it."""
        for index, layer in enumerate(cache.layers):
            if self._is_sdpa:
                empty = layer.keys[..., :0, :].repeat_interleave(per_record, 0)
                cache.layers[index] = SharedPrefixLayer((layer.keys, layer.values), (empty, empty))
            else:
                layer.batch_repeat_interleave(per_record)

    def _truncate(self, cache: Any, lowest: int, before: int, length: int) -> None:
        """Drop the tokens from the subject on from a cache, and all keys of the layers that will be skipped."""
        shared = self.prefix_length
        for index, layer in enumerate(cache.layers):
            if isinstance(layer, SharedPrefixLayer):
                assert layer.new is not None
                own, found = layer.new, shared + layer.new[0].shape[-2]
            else:
                own, found = (layer.keys[..., shared:, :], layer.values[..., shared:, :]), layer.keys.shape[-2]
            if found != length:
                raise ValueError("the model's cache does not keep the whole prefix")
            keys, values = own[0][..., :before, :].clone(), own[1][..., :before, :].clone()
            if index <= lowest:  # only the length is read
                shape = (*keys.shape[:2], shared + before, keys.shape[-1])
                empty = keys.new_zeros(()).expand(shape)
                cache.layers[index] = filled_cache_layer(empty, empty)
            elif not self._is_sdpa:
                kept = (tensor[..., : shared + before, :].clone() for tensor in (layer.keys, layer.values))
                cache.layers[index] = filled_cache_layer(*kept)
            elif isinstance(layer, SharedPrefixLayer):
                cache.layers[index] = SharedPrefixLayer(layer.shared, (keys, values))
            else:  # without a shared prefix
                cache.layers[index] = SharedPrefixLayer((keys[:1, :, :0], values[:1, :, :0]), (keys, values))


class LocateLosses:
    """The NLL of each row of a batch of records, by `LocatePass` where model and batch allow it, by full passes otherwise.

    Args:
        model: the frozen Hugging Face model.
        scaled: context manager of the mask, (B, T) bool, and `Vectors` that scales the layers' outputs there.
        enabled: whether partial passes may be used at all.
    """

    def __init__(
        self, model: Any, scaled: Callable[[Tensor, Vectors], AbstractContextManager[None]], enabled: bool = True
    ) -> None:
        self.model, self.scaled = model, scaled
        self.fast_path = FastPath("Prefix reuse in the locator", enabled)

    def prepare(self, batch: Mapping[str, Any], positions: Tensor, start: Vectors) -> Callable[[Vectors], Tensor]:
        """Return a function that runs the batch and returns the NLL of each row, (B,), under given vectors.

        Args:
            batch: a collated batch of records.
            positions: (B, T) bool, the subject's last token of each row.
            start: the vectors to begin with; the function takes those of any of its layers.
        """

        def plain(vectors: Vectors) -> Tensor:
            with self.scaled(positions, vectors):
                return batch_nll(self.model, batch)

        def build() -> Callable[[Vectors], Tensor]:
            partial_pass = LocatePass(self.model, batch, positions, list(start))

            def fast(vectors: Vectors) -> Tensor:
                with self.scaled(partial_pass.positions, vectors):
                    return partial_pass.nll(min(vectors))

            return fast

        @torch.no_grad()
        def run(nll: Callable[[Vectors], Tensor]) -> Results:
            return {"losses": [nll(start)]}

        full: Callable[[Vectors], Tensor] = plain
        return self.fast_path.choose(self.model, full, build, run, f"record {batch['record_id'][0]}")


def _rows_per_record(records: Sequence[str]) -> int:
    """Return how many adjacent rows each record has, or 1 where the records have different numbers of rows."""
    count = list(records).count(records[0])
    runs = [set(records[start : start + count]) for start in range(0, len(records), count)]
    equal = len(records) % count == 0 and all(len(run) == 1 for run in runs) and len(set(records)) == len(runs)
    return count if equal else 1
