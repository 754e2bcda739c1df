"""Shared prefixes: the tokens that several rows of a batch begin with, run once for all of them.

Rows belong to groups, such as the queries about one picture. With causal attention, the keys and values of the tokens that
all rows of a group begin with (system prompt, picture) are the same in each of them. `SharedPrefix` finds these tokens and
runs them once a group; `OwnTokens` are the rest of each row, aligned in columns of their own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lightning_neuralgate.hf.decoder import find_hf_model
from lightning_neuralgate.hf.forward import last_logits, model_inputs

TEXT_INPUTS = {"input_ids", "mm_token_type_ids", "token_type_ids"}
"""Inputs per token of which only `input_ids` is needed behind a prefix that holds all pictures."""


@dataclass(frozen=True)
class OwnTokens:
    """The tokens of each row behind its shared prefix, aligned in Q columns.

    Attributes:
        columns: (B, Q), the column of each token in the batch; any column where `real` is False.
        real: (B, Q) bool, False at padding.
        position_ids: (B, Q), or (3, B, Q) with multimodal RoPE (see `token_positions`).
        prefix_length: number of tokens in front of them.
    """

    columns: Tensor
    real: Tensor
    position_ids: Tensor
    prefix_length: int

    def select(self, values: Tensor) -> Tensor:
        """Return the values, (B, T), at these tokens, (B, Q), and 0 at padding."""
        return values.gather(1, self.columns) * self.real.to(values.dtype)

    @property
    def attention_mask(self) -> Tensor:
        """The mask of prefix and own tokens together, (B, prefix_length + Q) int64."""
        return torch.cat([self.real.new_ones(len(self.real), self.prefix_length), self.real], 1).long()

    def to(self, device: Any, **options: Any) -> OwnTokens:
        """Return a copy on a device."""
        return with_tensors_on(self, device, **options)


class SharedPrefix:
    """The tokens that all rows of each group begin with.

    Args:
        model: the Hugging Face model.
        batch: a collated batch.
        groups: the name of each row's group.
        limit: (B,), the column before which the prefix has to end in each row; the row's last token when left out.

    Attributes:
        length: number of tokens that all rows of each group begin with, pictures included; 0 where they cannot share any.
        starts: (B,), the column of each row's first token.
        ends: (B,), the column behind its last one.
        group_index: (B,), the index of each row's group.
        leaders: (R,), the first row of each group.
        token_inputs: the batch's inputs with one value per token, (B, T) each, without the attention mask.
        other_inputs: its other inputs, such as pixels.
        positions: the position of each token in its row, see `token_positions`.
    """

    def __init__(
        self, model: nn.Module, batch: Mapping[str, Any], groups: Sequence[Any], limit: Tensor | None = None
    ) -> None:
        inputs = model_inputs(batch)
        self.attention_mask = inputs["attention_mask"].bool()
        shape, device = self.attention_mask.shape, self.attention_mask.device
        self.other_inputs = {key: value for key, value in inputs.items() if value.shape != shape}
        self.token_inputs = {k: v for k, v in inputs.items() if k not in self.other_inputs and k != "attention_mask"}
        self.positions = token_positions(model, inputs)
        columns = torch.arange(shape[1], device=device)
        self.starts = torch.where(self.attention_mask, columns, shape[1]).amin(1)
        self.ends = torch.where(self.attention_mask, columns, -1).amax(1) + 1
        names = list(dict.fromkeys(groups))
        self.group_index = torch.tensor([names.index(group) for group in groups], device=device)
        self.leaders = torch.tensor([list(groups).index(name) for name in names], device=device)
        self.length = self._shared_length(model, self.ends - 1 if limit is None else limit)

    @property
    def columns(self) -> Tensor:
        """The columns of the prefix in each row, (B, length)."""
        return self.starts[:, None] + torch.arange(self.length, device=self.starts.device)

    @property
    def position_ids(self) -> Tensor:
        """The positions of each group's prefix, (R, length), or (3, R, length) with multimodal RoPE."""
        return _gather(self.positions[..., self.leaders, :], self.columns[self.leaders])

    def own_tokens(self, anchor: Tensor, after: int = 0) -> OwnTokens:
        """Return the tokens behind the prefix, aligned so that the anchors of all rows stand in one column.

        Args:
            anchor: (B,), a column of each row, at or behind the end of its prefix.
            after: number of columns from the anchor on.
        """
        before = int((anchor - self.starts).max()) - self.length
        columns = anchor[:, None] + torch.arange(-before, after, device=anchor.device)
        real = (columns >= self.starts[:, None] + self.length) & (columns < self.ends[:, None])
        columns = columns.clamp(0, self.attention_mask.shape[1] - 1)
        return OwnTokens(columns, real, _gather(self.positions, columns), self.length)

    def run(self, model: nn.Module) -> Any:
        """Run the prefix of each group.

        Returns:
            The cache of the pass, with one row per group.

        Raises:
            ValueError: the model's cache does not keep the whole prefix.
        """
        columns = self.columns[self.leaders]
        inputs = {key: value[self.leaders].gather(1, columns) for key, value in self.token_inputs.items()}
        for key, value in self.other_inputs.items():
            inputs[key] = value.unflatten(0, (self._pictured_rows, -1))[self._pictured_leaders].flatten(0, 1)
        cache = run_prefix(model, inputs, self.position_ids)
        if any(layer.keys.shape[-2] != self.length for layer in cache.layers):
            raise ValueError("the model's cache does not keep the whole prefix")
        return cache

    def to(self, device: Any, **options: Any) -> SharedPrefix:
        """Return a copy on a device."""
        return with_tensors_on(self, device, **options)

    def _shared_length(self, model: nn.Module, limit: Tensor) -> int:
        rows, ids = len(self.starts), self.token_inputs["input_ids"]
        if split_positions_problem(model, self.attention_mask.shape[1], bool(self.other_inputs)):
            return 0
        if len(self.leaders) == rows or (self.other_inputs and not self._same_pictures(model)):
            return 0
        longest = int((limit - self.starts).min())
        columns = self.starts[:, None] + torch.arange(longest, device=ids.device)
        same = torch.ones(longest, dtype=torch.bool, device=ids.device)
        for values in self.token_inputs.values():
            tokens = values.gather(1, columns)
            same &= (tokens == tokens[self.leaders[self.group_index]]).all(0)
        shared = int(same.long().cumprod(0).sum())
        if self.other_inputs:  # all tokens of a picture have to lie in the prefix
            inside = self._is_picture.gather(1, columns[:, :shared]).sum(1)
            if bool(self._is_picture.sum(1).ne(inside).any()):
                return 0
        return shared

    def _same_pictures(self, model: nn.Module) -> bool:
        """Return whether each row shows the pictures of its group's first row, and note which rows show some."""
        config = find_hf_model(model).config
        token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        if token is None:
            return False
        self._is_picture = (self.token_inputs["input_ids"] == token) & self.attention_mask
        pictured = self._is_picture.any(1).nonzero()[:, 0]
        rows, count = len(self.starts), len(pictured)
        # rows of text alone must have no part in the inputs of pictures
        if not count or any(
            len(value) % count or (count < rows and len(value) == rows) for value in self.other_inputs.values()
        ):
            return False
        place = torch.full((rows,), -1, device=pictured.device)
        place[pictured] = torch.arange(count, device=pictured.device)
        leaders = place[self.leaders]
        self._pictured_rows, self._pictured_leaders = count, leaders[leaders >= 0]
        leader_of_row = leaders[self.group_index]
        if bool(((place < 0) != (leader_of_row < 0)).any()):
            return False
        for value in self.other_inputs.values():
            entries = value.unflatten(0, (count, -1))
            if not bool((entries == entries[leader_of_row[pictured]]).all()):
                return False
        return True


def run_prefix(model: nn.Module, inputs: Mapping[str, Any], position_ids: Tensor) -> Any:
    """Run the first tokens of sequences without padding, at positions (R, C) or (3, R, C), and return the cache."""
    cache: Any = DynamicCache(config=find_hf_model(model).config.get_text_config())
    ones = position_ids.new_ones(position_ids.shape[-2:])
    options = {"attention_mask": ones, "position_ids": position_ids, "past_key_values": cache, "use_cache": True}
    last_logits(model, {**inputs, **options}, 1)
    return cache


def token_positions(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the position of each token of a batch; positions at padding have no meaning.

    With multimodal RoPE (the Qwen-VL models) a token of a picture has a position in time and two in the picture, and the text
    behind it continues from the largest of them. The model's own `get_rope_index` computes these from the whole batch. A
    part of the batch cannot: it has neither the earlier pictures nor the number of positions that they take.

    Args:
        model: the Hugging Face model.
        inputs: its inputs for the whole batch, with `attention_mask`, (B, T).

    Returns:
        (B, T), or (3, B, T) with multimodal RoPE.
    """
    rope_index = _rope_index(model)
    if rope_index is None or "mm_token_type_ids" not in inputs or not any(key.endswith("_grid_thw") for key in inputs):
        return (inputs["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
    known = inspect.signature(rope_index).parameters
    positions: Tensor = rope_index(**{key: value for key, value in inputs.items() if key in known})[0]
    return positions


def picture_layers(model: nn.Module) -> int:
    """Return after how many of the lowest decoder layers features of pictures are added (Qwen3-VL's DeepStack)."""
    vision = getattr(find_hf_model(model).config, "vision_config", None)
    return len(getattr(vision, "deepstack_visual_indexes", None) or ())


def text_part(model: Any) -> Any:
    """Return the model to call with `inputs_embeds`: the language model where the whole one insists on a picture."""
    whole: Any = find_hf_model(model)
    pixels = inspect.signature(whole.forward).parameters.get("pixel_values")
    return whole.language_model if pixels is not None and pixels.default is pixels.empty else model


def _rope_index(model: nn.Module) -> Callable[..., tuple[Tensor, Tensor]] | None:
    return getattr(find_hf_model(model).base_model, "get_rope_index", None)


def _gather(values: Tensor, columns: Tensor) -> Tensor:
    """(..., B, T) at columns (B, Q) -> (..., B, Q)."""
    return values.gather(-1, columns.expand(*values.shape[:-1], -1))


def with_tensors_on(holder: Any, device: Any, **options: Any) -> Any:
    """Return a copy of an object with its tensors, also those in dicts and in objects with a `to`, on a device."""
    moved = copy.copy(holder)
    for name, value in vars(holder).items():
        object.__setattr__(moved, name, _on(value, device, **options))
    return moved


def _on(value: Any, device: Any, **options: Any) -> Any:
    if isinstance(value, dict):
        return {key: _on(entry, device, **options) for key, entry in value.items()}
    return value.to(device, **options) if hasattr(value, "to") else value


def split_positions_problem(model: nn.Module, length: int, pictures: bool) -> str | None:
    """Explain why a sequence cannot be run in parts at the positions of `token_positions`; None if it can.

    Args:
        model: the Hugging Face model.
        length: number of columns of the batch.
        pictures: whether the batch holds more than text.
    """
    config: Any = find_hf_model(model).config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(window and window < length for window in windows):
        return f"attention reaches back {windows} tokens only, of {length}"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if pictures and "mrope_section" in rope and _rope_index(model) is None:
        return "positions follow the places in a picture, and the model has no `get_rope_index`"
    known: int = (
        rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None) or length
    )
    if rope.get("rope_type") in ("dynamic", "longrope") and length > known:
        return f"positions depend on how long a text beyond {known} tokens is"
    return None
