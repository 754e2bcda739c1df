"""Answers to many prompts about few pictures, with what prompts about a picture begin with run once for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_neuralgate.hf.distributed import is_sharded
from lightning_neuralgate.hf.forward import last_logits, model_inputs
from lightning_neuralgate.hf.generation import generate_answers, generate_from_inputs
from lightning_neuralgate.prefix_cache.prefix import NOT_ALLOWED, SharedPrefix, is_out_of_memory

_WORTH_IT = 16
"""Fewer tokens are not worth a pass of their own."""
_HOLDS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@torch.no_grad()
def generate_with_shared_prefix(
    model: Any,
    tokenizer: Any,
    batch: Mapping[str, Any],
    groups: Sequence[Any],
    max_new_tokens: int,
    sampling: Mapping[str, Any] | None = None,
    until: Callable[[str], bool] | None = None,
) -> list[str]:
    """What `generate_answers` answers, for less where rows have their pictures in common.

    The first batch of a model is run both ways; where the next token's probabilities differ, the plain way is taken from then
    on, with a warning.

    Args:
        model: a Hugging Face model with `generate`.
        tokenizer: decodes the answers.
        batch: a left-padded batch of prompts.
        groups: for each row what it may share, such as its picture.
        max_new_tokens: upper bound of an answer's length.
        sampling: arguments of `generate`; greedy when left out.
        until: whether an answer may end after what is told of it so far; each is told to its end when left out.
    """
    if _HOLDS.get(model, True) and not is_sharded(model):
        device = next(model.parameters()).device
        batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        prefix = SharedPrefix(model, batch, groups)
        if prefix.count >= _WORTH_IT and prefix.sequences.keys() == {"input_ids"} and _holds(model, batch, prefix):
            return generate_from_inputs(model, tokenizer, _behind(model, prefix), max_new_tokens, sampling, until)
    return generate_answers(model, tokenizer, batch, max_new_tokens, sampling, until)


def _behind(model: Any, prefix: SharedPrefix) -> dict[str, Any]:
    """Inputs of `generate` with the prefix in the cache: its tokens, padding, each row's own tokens."""
    cache = prefix.run(model)
    cache.batch_select_indices(prefix.owner)
    width = prefix.attention.shape[1]
    own = int((width - prefix.first).max()) - prefix.count
    source = torch.arange(width - own, width, device=prefix.first.device).expand(len(prefix.first), -1)
    real = source >= prefix.first[:, None] + prefix.count
    ids = prefix.sequences["input_ids"]
    begin = prefix.first[:, None] + torch.arange(prefix.count, device=ids.device)
    return {
        "input_ids": torch.cat([ids.gather(1, begin), ids.gather(1, source) * real], 1),
        "attention_mask": torch.cat([real.new_ones(begin.shape), real], 1).long(),
        "past_key_values": cache,
    }


def _holds(model: Any, batch: Mapping[str, Any], prefix: SharedPrefix) -> bool:
    if model not in _HOLDS:
        try:
            # autocast's rounding would hide what is wrong, or look like it
            with torch.autocast(batch["input_ids"].device.type, enabled=False):
                inputs = _behind(model, prefix)
                ids, mask = inputs["input_ids"][:, prefix.count :], inputs["attention_mask"]
                places = (mask.cumsum(1) - 1).clamp(min=0)[:, prefix.count :]
                given = {**inputs, "input_ids": ids, "position_ids": places, "use_cache": True}
                found = last_logits(model, given, 1).logits[:, -1].float()
                expected = last_logits(model, {**model_inputs(batch), "use_cache": False}, 1).logits[:, -1].float()
            spread = (expected - expected.mean(1, keepdim=True)).norm(dim=1)
            off = float(((found - expected).norm(dim=1) / spread).max())
            _HOLDS[model] = off < (1e-3 if next(model.parameters()).dtype == torch.float32 else 0.2)
            reason = f"logits that differ by {off:.2g} of their spread"
        except NOT_ALLOWED as error:
            if is_out_of_memory(error):
                raise
            _HOLDS[model], reason = False, repr(error)
        if not _HOLDS[model]:
            warnings.warn(
                f"prompts of {type(model).__name__} cannot share what they begin with, each is run as a whole: {reason}",
                stacklevel=2,
            )
    return _HOLDS[model]
