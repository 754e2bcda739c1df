"""Context managers that record or replace what decoder layers compute, and always clean up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def capture_outputs(layers: nn.ModuleList, indices: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs of some layers while the block runs: layer index -> (B, T, d), filled by each forward pass."""
    outputs: dict[int, Tensor] = {}

    def hook(index: int) -> Any:
        def capture(module: nn.Module, args: Any, output: Any) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return capture

    handles = [layers[index].register_forward_hook(hook(index)) for index in indices]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replace_outputs(
    layers: nn.ModuleList, indices: Sequence[int], change: Callable[[int, Tensor], Tensor]
) -> Iterator[None]:
    """Replace the outputs of some layers, (B, T, d), by a function of layer index and output while the block runs."""

    def hook(index: int) -> Any:
        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return change(index, output[0]), *output[1:]
            return change(index, output)

        return replace

    handles = [layers[index].register_forward_hook(hook(index)) for index in indices]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Stopped(Exception):
    """Ends a forward pass."""


@contextmanager
def stop_before(module: nn.Module) -> Iterator[None]:
    """End the forward pass in the block before a module runs, after its earlier hooks. Not for sharded weights."""

    def stop(*_: Any) -> None:
        raise _Stopped

    handle = module.register_forward_pre_hook(stop)
    try:
        with suppress(_Stopped):
            yield
    finally:
        handle.remove()


def _identity(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


@contextmanager
def skip_layers(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let some layers return their input while the block runs. Their hooks still run."""
    with _replaced_forward(layers, lambda layer: _identity):
        yield


@contextmanager
def recompute_layers(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Keep the inputs of some layers only for the backward pass of what runs in the block, which runs these layers again.

    Not for passes that fill a key-value cache, to which a layer that runs twice would add its keys twice.
    """

    def recomputed(layer: nn.Module) -> Any:
        return partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

    with _replaced_forward(layers, recomputed):
        yield


@contextmanager
def _replaced_forward(layers: Iterable[nn.Module], replacement: Callable[[nn.Module], Any]) -> Iterator[None]:
    layers = list(layers)
    forwards = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = replacement(layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
