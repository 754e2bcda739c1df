"""What several rows of a batch begin with, run once for all of them.

Rows belong to groups, such as the queries about one picture. With causal attention, the keys and values of the tokens that
all rows of a group begin with (system prompt, picture) are the same in each of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lightning_neuralgate.hf.decoder import find_hf_model
from lightning_neuralgate.hf.forward import last_logits, model_inputs

NOT_ALLOWED = (TypeError, ValueError, AttributeError, RuntimeError)
"""What comes of a model whose code does not go together with a pass in parts; the plain way is taken then."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says nothing of the model, but that a pass did not fit."""
    return isinstance(error, torch.cuda.OutOfMemoryError)


class SharedPrefix:
    """How many tokens the rows of each group begin with, and one row of each group that stands for it.

    Args:
        model: the Hugging Face model.
        batch: a collated batch.
        groups: a name for each row's group.
        limit: (B,), the column before which what is shared has to end in each row; the row's last when left out.

    Attributes:
        sequences: the batch's inputs with one value a token, (B, T) each, without the attention mask.
        rest: its other inputs, such as pixels.
        first: (B,), column of each row's first token.
        end: (B,), column behind its last one.
        owner: (B,), the number of each row's group.
        leading: (R,), the first row of each group.
        count: tokens that all rows of each group begin with, pictures included; 0 where rows cannot share them.
    """

    def __init__(
        self, model: nn.Module, batch: Mapping[str, Any], groups: Sequence[Any], limit: Tensor | None = None
    ) -> None:
        inputs = model_inputs(batch)
        self.attention = inputs["attention_mask"].bool()
        shape, device = self.attention.shape, self.attention.device
        self.rest = {key: value for key, value in inputs.items() if value.shape != shape}
        self.sequences = {k: v for k, v in inputs.items() if k not in self.rest and k != "attention_mask"}
        columns = torch.arange(shape[1], device=device)
        self.first = torch.where(self.attention, columns, shape[1]).amin(1)
        self.end = torch.where(self.attention, columns, -1).amax(1) + 1
        names = list(dict.fromkeys(groups))
        self.owner = torch.tensor([names.index(group) for group in groups], device=device)
        self.leading = torch.tensor([list(groups).index(name) for name in names], device=device)
        self.count = self._count(model, self.end - 1 if limit is None else limit)

    def _count(self, model: nn.Module, limit: Tensor) -> int:
        rows, ids = len(self.first), self.sequences["input_ids"]
        if split_positions_problem(model, self.attention.shape[1], bool(self.rest)) or len(self.leading) == rows:
            return 0
        if self.rest and not self._pictures_alike(model):
            return 0

        def alike(value: Tensor) -> Tensor:
            return value == value[self.leading[self.owner]]

        longest = int((limit - self.first).min())
        source = self.first[:, None] + torch.arange(longest, device=ids.device)
        same = torch.ones(longest, dtype=torch.bool, device=ids.device)
        for value in self.sequences.values():
            same &= alike(value.gather(1, source)).all(0)
        shared = int(same.long().cumprod(0).sum())
        if self.rest:
            # a picture has to lie in what is shared, all of it
            inside = self._shows.gather(1, source[:, :shared]).sum(1)
            if bool(self._shows.sum(1).ne(inside).any()):
                return 0
        return shared

    def _pictures_alike(self, model: nn.Module) -> bool:
        """Whether each row shows the pictures that the first of its group shows; notes which rows show some."""
        config = find_hf_model(model).config
        token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        if token is None:
            return False
        self._shows = (self.sequences["input_ids"] == token) & self.attention
        showing = self._shows.any(1).nonzero()[:, 0]
        rows, each = len(self.first), len(showing)
        # rows of text alone have nothing in what comes with pictures
        if not each or any(len(value) % each or (each < rows and len(value) == rows) for value in self.rest.values()):
            return False
        place = torch.full((rows,), -1, device=showing.device)
        place[showing] = torch.arange(each, device=showing.device)
        self._pictures, led = each, place[self.leading]
        self._led = led[led >= 0]
        first = led[self.owner]
        if bool(((place < 0) != (first < 0)).any()):
            return False
        for value in self.rest.values():
            entries = value.unflatten(0, (each, -1))
            if not bool((entries == entries[first[showing]]).all()):
                return False
        return True

    def to(self, device: Any, **options: Any) -> Any:
        """The same, with its tensors on a device: what was asked of a batch before need not be asked there."""
        return with_tensors_on(self, device, **options)

    def run(self, model: nn.Module) -> Any:
        """The cache of a pass over what is shared, one row a group."""
        begin = self.first[self.leading, None] + torch.arange(self.count, device=self.first.device)
        begun = {key: value[self.leading].gather(1, begin) for key, value in self.sequences.items()}
        alone = {}
        for key, value in self.rest.items():
            alone[key] = value.unflatten(0, (self._pictures, -1))[self._led].flatten(0, 1)
        cache: Any = DynamicCache(config=find_hf_model(model).config.get_text_config())
        ones = torch.ones_like(begin)
        given = {
            "attention_mask": ones,
            "position_ids": ones.cumsum(1) - 1,
            "past_key_values": cache,
            "use_cache": True,
        }
        last_logits(model, {**alone, **begun, **given}, 1)
        if any(cached.keys.shape[-2] != self.count for cached in cache.layers):
            raise ValueError("the model's cache does not keep the whole prefix")
        return cache


def with_tensors_on(layout: Any, device: Any, **options: Any) -> Any:
    """A copy of an object whose tensors, also those in its dicts and in objects with a `to`, are on a device."""
    moved = copy.copy(layout)
    for name, value in vars(layout).items():
        setattr(moved, name, _on(value, device, **options))
    return moved


def _on(value: Any, device: Any, **options: Any) -> Any:
    if isinstance(value, dict):
        return {key: _on(one, device, **options) for key, one in value.items()}
    return value.to(device, **options) if hasattr(value, "to") else value


def split_positions_problem(model: nn.Module, length: int, pictures: bool) -> str | None:
    """Why a sequence of a model cannot be run in parts by counting its tokens; None if it can.

    Args:
        model: the Hugging Face model.
        length: columns of the batch.
        pictures: whether there is more than text.
    """
    config: Any = find_hf_model(model).config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(window and window < length for window in windows):
        return f"attention reaches back {windows} tokens only, of {length}"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if pictures and "mrope_section" in rope:
        return "positions follow the places in a picture"
    known: int = (
        rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None) or length
    )
    if rope.get("rope_type") in ("dynamic", "longrope") and length > known:
        return f"positions depend on how long a text beyond {known} tokens is"
    return None
