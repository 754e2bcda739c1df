"""Attention of a few new tokens to a long prefix that is the same in every step, most of it the same for many rows.

The prefix is a constant: no gradient flows into it, and what rows share of it is kept and multiplied once for all of them,

    softmax([q K_shared^T | q [K_own; K_new]^T]) [V_shared; V_own; V_new]

which is what attention over the whole is, in parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import DynamicLayer


def grown(keys: Tensor, values: Tensor) -> DynamicLayer:
    """A cached layer that holds these; also in the place of one that slides, since all of its prefix is there."""
    layer = DynamicLayer()
    layer.keys, layer.values = keys, values
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    return layer


@contextmanager
def capture_outputs(layers: nn.ModuleList, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
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
def skip_layers(layers: Iterable[nn.Module]) -> Iterator[None]:
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


Pair = tuple[Tensor, Tensor]


class SharedPrefixLayer(DynamicLayer):
    """A layer of a `DynamicCache` whose prefix stays in parts; `update` hands back the new keys and values alone.

    Only `SharedPrefixAttention` can attend to it.

    Args:
        shared: keys and values that runs of B / R rows share, (R, H, C, d) each.
        own: each row's own, (B, H, W, d) each.

    Attributes:
        new: what `update` was given last.
    """

    def __init__(self, shared: Pair, own: Pair) -> None:
        super().__init__()
        self.shared, self.own = shared, own
        rows, heads, width, size = own[0].shape
        self.dtype, self.device = own[0].dtype, own[0].device
        # what others read off is how long it is
        self.keys = own[0].new_zeros(()).expand(rows, heads, shared[0].shape[-2] + width, size)
        self.values = self.keys
        self.is_initialized = True
        self.awaited = False
        self.new: Pair | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Pair:
        self.awaited, self.new = True, (key_states, value_states)
        return key_states, value_states


class SharedPrefixAttention(TorchFunctionMode):
    """While the block runs, `scaled_dot_product_attention` knows the prefix of the `SharedPrefixLayer` that was just updated.

    Args:
        layers: the cache's layers.

    Raises:
        ValueError: attention with dropout, without a mask of the whole, or with a mask of its own for each head.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self._layers = [layer for layer in layers if isinstance(layer, SharedPrefixLayer)]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            for layer in self._layers:
                if layer.awaited:
                    layer.awaited = False
                    return _attend(layer, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(
    layer: SharedPrefixLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention of `query`, (B, Hq, Q, d), to the layer's prefix and to `key` and `value`, (B, Hq or H, Q, d)."""
    if is_causal or dropout_p:
        raise ValueError("attention with dropout or without a mask of the whole does not fall into parts")
    rows, heads, count, size = query.shape
    groups = layer.own[0].shape[1]
    # query heads that share their keys become rows of one product
    query = query.reshape(rows, groups, heads // groups, count, size) * (size**-0.5 if scale is None else scale)
    key, value = (part.reshape(rows, groups, -1, *part.shape[-2:])[:, :, 0] for part in (key, value))
    each = query.flatten(2, 3)
    keys, values = layer.shared
    own_keys, own_values = (torch.cat(pair, -2) for pair in zip(layer.own, (key, value), strict=True))
    runs, shared = keys.shape[0], keys.shape[-2]

    def together(part: Tensor) -> Tensor:
        """(B, H, q, x) -> (R, H, B / R * q, x): rows of a run become rows of one product, too."""
        return part.unflatten(0, (runs, -1)).transpose(1, 2).flatten(2, 3)

    def apart(part: Tensor) -> Tensor:
        return part.unflatten(2, (rows // runs, -1)).transpose(1, 2).flatten(0, 1)

    def masked(scores: Tensor, mask: Tensor) -> Tensor:
        mask = mask.unsqueeze(2)
        if mask.shape[1] not in (1, groups):
            raise ValueError("a mask of its own for each head does not fall into parts")
        of_heads = scores.unflatten(2, (heads // groups, count))
        of_heads = of_heads.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else of_heads + mask
        return of_heads.flatten(2, 3)

    scores = each @ own_keys.mT
    if attn_mask is not None:  # what is shared is real and lies before all that asks, so no mask hides it
        scores = masked(scores, attn_mask[..., shared:])
    if shared:
        scores = torch.cat([apart(together(each) @ keys.mT), scores], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    of_shared, of_own = weights.split([shared, own_keys.shape[-2]], -1)
    output = of_own @ own_values
    if shared:
        output = output + apart(together(of_shared) @ values)
    return output.unflatten(2, (heads // groups, count)).flatten(1, 2)
