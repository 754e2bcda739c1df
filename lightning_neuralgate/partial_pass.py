"""Running some of a decoder's layers only: keeping what one puts out, handing on what another is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer


def grown(keys: Tensor, values: Tensor) -> DynamicLayer:
    """A cached layer that holds these; also in the place of one that slides, since all of its prefix is there."""
    layer = DynamicLayer()
    layer.keys, layer.values = keys, values
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    return layer


@contextmanager
def outputs_of(layers: nn.ModuleList, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collects the outputs of some layers, layer -> (B, T, d)."""
    seen: dict[int, Tensor] = {}

    def hook(index: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            seen[index] = output[0] if isinstance(output, tuple) else output

        return keep

    handles = [layers[index].register_forward_hook(hook(index)) for index in wanted]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _unchanged(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


@contextmanager
def passed_through(layers: Iterable[nn.Module]) -> Iterator[None]:
    """While the block runs, these layers hand on what they are given. Their hooks run."""
    layers = list(layers)
    own = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = _unchanged
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
