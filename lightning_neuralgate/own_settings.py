"""A checkpoint's own settings of generation, and a model without them.

`generate` starts from what a checkpoint brings along: beams, penalties, temperatures, lengths, suppressed tokens. Greedy
answers, and those of a named sampling, are to be what is asked for and nothing else, alike for every checkpoint. Only what
says where an answer begins and ends is the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "stop_strings")


def kept_settings(model: Any) -> dict[str, Any]:
    """What counts of a model's own settings: the tokens and texts with which an answer begins and ends."""
    kept: dict[str, Any] = {}
    for _, own in _owners(model):
        for name in _KEPT:
            if kept.get(name) is None:
                kept[name] = getattr(own, name, None)
    return {name: value for name, value in kept.items() if value is not None}


@contextmanager
def own_settings_set_aside(model: Any) -> Iterator[None]:
    """While the block runs, a model and the models inside of it have no settings of generation but `kept_settings`."""
    owners = list(_owners(model))
    for part, own in owners:
        part.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in _KEPT})
    try:
        yield
    finally:
        for part, own in owners:
            part.generation_config = own


def _owners(model: Any) -> Iterator[tuple[Any, GenerationConfig]]:
    # some models call generate on a language model inside of them, which has settings of its own; a PEFT model only passes on
    for part in model.modules():
        own = vars(part).get("generation_config")
        if isinstance(own, GenerationConfig):
            yield part, own
