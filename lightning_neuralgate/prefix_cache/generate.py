"""Generation with shared prefixes: run what the prompts about a picture begin with once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_neuralgate.hf.distributed import is_sharded
from lightning_neuralgate.hf.forward import last_logits, model_inputs
from lightning_neuralgate.hf.generation import generate_answers, generate_from_inputs
from lightning_neuralgate.prefix_cache.prefix import TEXT_INPUTS, OwnTokens, SharedPrefix
from lightning_neuralgate.prefix_cache.verify import FastPath, Results

_MIN_PREFIX = 16
"""Fewer tokens are not worth a forward pass of their own."""

_FAST_PATHS: WeakKeyDictionary[Any, FastPath] = WeakKeyDictionary()


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
    """Generate the same answers as `generate_answers`, in less time where rows share their pictures.

    The first batch of a model is run both ways; if the logits of the next token differ, full prompts are run from then on,
    with a warning.

    Args:
        model: a Hugging Face model with `generate`.
        tokenizer: decodes the answers.
        batch: a left-padded batch of prompts.
        groups: for each row the name of what it may share, such as its picture.
        max_new_tokens: upper bound of an answer's length.
        sampling: arguments of `generate`; greedy when left out.
        until: stops an answer early, once it returns True for the text so far.
    """
    plain = partial(generate_answers, model, tokenizer, batch, max_new_tokens, sampling, until)
    fast_path = _FAST_PATHS.setdefault(model, FastPath("Prefix sharing in generation"))
    if not fast_path.enabled or is_sharded(model):
        return plain()
    device = next(model.parameters()).device
    batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    prefix = SharedPrefix(model, batch, groups)
    if prefix.length < _MIN_PREFIX or prefix.token_inputs.keys() - TEXT_INPUTS:
        return plain()
    own = prefix.own_tokens(prefix.ends)
    full = {**model_inputs(batch), "use_cache": False}

    def run(inputs: Mapping[str, Any]) -> Results:
        if inputs is not full:
            ids = inputs["input_ids"][:, prefix.length :]
            inputs = {**inputs, "input_ids": ids, "position_ids": own.position_ids, "use_cache": True}
        logits = last_logits(model, inputs, 1).logits[:, -1].float()
        return {"logits": (logits - logits.mean(1, keepdim=True)).unbind()}

    inputs = fast_path.choose(model, full, lambda: _generate_inputs(model, prefix, own), run)
    if inputs is full:
        return plain()
    return generate_from_inputs(model, tokenizer, inputs, max_new_tokens, sampling, until)


def _generate_inputs(model: Any, prefix: SharedPrefix, own: OwnTokens) -> dict[str, Any]:
    """Return the inputs of `generate`, the prefix in the cache: its tokens, padding, each row's own tokens."""
    cache = prefix.run(model)
    cache.batch_select_indices(prefix.group_index)
    ids = prefix.token_inputs["input_ids"]
    positions = {}
    if prefix.positions.ndim == 3:  # `generate` counts others itself, and continues these from the last one
        of_rows = prefix.position_ids[:, prefix.group_index]
        positions["position_ids"] = torch.cat([of_rows, own.position_ids], -1)
    return {
        **positions,
        "input_ids": torch.cat([ids.gather(1, prefix.columns), own.select(ids)], 1),
        "attention_mask": own.attention_mask,
        "past_key_values": cache,
    }
