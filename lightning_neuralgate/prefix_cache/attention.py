"""Attention of new tokens to a constant prefix, most of which several rows share.

No gradient flows into the prefix. What rows share of it is stored and multiplied once for all of them,

    softmax([q K_shared^T | q [K_own; K_new]^T]) [V_shared; V_own; V_new]

which equals attention over all keys, computed in parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import DynamicLayer

Pair = tuple[Tensor, Tensor]


def filled_cache_layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    """Return a growing cache layer that holds these keys and values, (B, H, C, d).

    It also replaces a layer with a sliding window, as long as the whole prefix lies inside the window.
    """
    layer = DynamicLayer()
    layer.keys, layer.values = keys, values
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    return layer


class SharedPrefixLayer(DynamicLayer):
    """A layer of a `DynamicCache` whose prefix stays in parts; `update` returns the new keys and values alone.

    Only `SharedPrefixAttention` can attend to it.

    Args:
        shared: keys and values that B / R adjacent rows share, (R, H, C, d) each.
        own: keys and values of each row, (B, H, W, d) each.

    Attributes:
        new: keys and values of the last `update`.
    """

    def __init__(self, shared: Pair, own: Pair) -> None:
        super().__init__()
        self.shared, self.own = shared, own
        rows, heads, width, size = own[0].shape
        self.dtype, self.device = own[0].dtype, own[0].device
        # only their length is read
        self.keys = own[0].new_zeros(()).expand(rows, heads, shared[0].shape[-2] + width, size)
        self.values = self.keys
        self.is_initialized = True
        self.pending = False
        self.new: Pair | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Pair:
        self.pending, self.new = True, (key_states, value_states)
        return key_states, value_states


class SharedPrefixAttention(TorchFunctionMode):
    """Context in which `scaled_dot_product_attention` attends to the prefix of the `SharedPrefixLayer` updated last.

    Args:
        layers: the cache's layers.

    Raises:
        ValueError: attention with dropout, without an explicit mask, or with a different mask per head.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self._layers = [layer for layer in layers if isinstance(layer, SharedPrefixLayer)]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            for layer in self._layers:
                if layer.pending:
                    layer.pending = False
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
    """Attend from `query`, (B, Hq, Q, d), to the layer's prefix and to `key` and `value`, (B, Hq or H, Q, d)."""
    if is_causal or dropout_p:
        raise ValueError("attention with dropout, or without an explicit mask, cannot be computed in parts")
    batch, heads, count, size = query.shape
    groups = layer.own[0].shape[1]
    # query heads that share their keys become rows of one product
    query = query.reshape(batch, groups, heads // groups, count, size) * (size**-0.5 if scale is None else scale)
    queries = query.flatten(2, 3)
    key, value = (tensor.reshape(batch, groups, -1, *tensor.shape[-2:])[:, :, 0] for tensor in (key, value))
    shared_keys, shared_values = layer.shared
    own_keys, own_values = (torch.cat(pair, -2) for pair in zip(layer.own, (key, value), strict=True))
    records, shared = shared_keys.shape[0], shared_keys.shape[-2]

    def join_rows(tensor: Tensor) -> Tensor:
        """(B, H, q, x) -> (R, H, B / R * q, x): the rows of a record become rows of one product, too."""
        return tensor.unflatten(0, (records, -1)).transpose(1, 2).flatten(2, 3)

    def split_rows(tensor: Tensor) -> Tensor:
        return tensor.unflatten(2, (batch // records, -1)).transpose(1, 2).flatten(0, 1)

    def masked(scores: Tensor, mask: Tensor) -> Tensor:
        mask = mask.unsqueeze(2)
        if mask.shape[1] not in (1, groups):
            raise ValueError("attention with a different mask per head cannot be computed in parts")
        by_head = scores.unflatten(2, (heads // groups, count))
        by_head = by_head.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else by_head + mask
        return by_head.flatten(2, 3)

    scores = queries @ own_keys.mT
    if attn_mask is not None:  # the shared prefix has no padding and precedes all queries, so no mask hides it
        scores = masked(scores, attn_mask[..., shared:])
    if shared:
        scores = torch.cat([split_rows(join_rows(queries) @ shared_keys.mT), scores], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    shared_weights, own_weights = weights.split([shared, own_keys.shape[-2]], -1)
    output = own_weights @ own_values
    if shared:
        output = output + split_rows(join_rows(shared_weights) @ shared_values)
    return output.unflatten(2, (heads // groups, count)).flatten(1, 2)
