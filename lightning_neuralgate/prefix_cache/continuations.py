"""NLL of many continuations of one prompt: run the prompt once, and what continuations begin with once for all of them.

The continuations form a tree, whose nodes are run as one sequence behind the prompt's cache. A node attends to the prompt,
to the nodes on its path, and to itself:

    prompt [picture, question, "The number is"] -> " " -> "4" -> "8" -> "2"
                                                               -> "1" -> "7"
                                                       -> "9" -> ...
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_neuralgate.hf.distributed import is_sharded
from lightning_neuralgate.hf.forward import IGNORED, batch_nll, last_logits, model_inputs
from lightning_neuralgate.prefix_cache.prefix import TEXT_INPUTS, SharedPrefix
from lightning_neuralgate.prefix_cache.verify import FastPath

_VERIFIED_ROWS = 3
_TREE_ROWS = 128
"""Rows per tree; a bound of its memory."""

_FAST_PATHS: WeakKeyDictionary[Any, FastPath] = WeakKeyDictionary()

Rows = Sequence[int]


@torch.no_grad()
def continuation_nll(model: Any, batch: Mapping[str, Any], batch_size: int = 8) -> Tensor:
    """Compute the NLL of each row's target, summed over its tokens.

    The first rows of a model are run both ways; if the results differ, full rows are run from then on, with a warning.

    Args:
        model: a Hugging Face model in eval mode.
        batch: a collated batch of one prompt, with or without a picture, in rows that differ in their targets only.
        batch_size: rows per forward pass, where full rows are run.

    Returns:
        (B,) nats, float32.
    """
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in model_inputs(batch).items()}
    labels = batch["labels"].to(device)
    count = len(labels)

    def plain(rows: Rows) -> Tensor:
        found = []
        for start in range(0, len(rows), batch_size):
            part = torch.tensor(rows[start : start + batch_size], device=device)
            # pictures may have several entries each
            chosen = {key: value.unflatten(0, (count, -1))[part].flatten(0, 1) for key, value in inputs.items()}
            nll = batch_nll(model, {**chosen, "labels": labels[part]})
            found.append(nll * (labels[part] != IGNORED).sum(1))
        return torch.cat(found)

    return _choose(model, inputs, labels, plain)(range(count))


def _choose(
    model: Any, inputs: Mapping[str, Tensor], labels: Tensor, plain: Callable[[Rows], Tensor]
) -> Callable[[Rows], Tensor]:
    fast_path = _FAST_PATHS.setdefault(model, FastPath("Prefix sharing between continuations"))
    if not fast_path.enabled or is_sharded(model):
        return plain
    columns = torch.arange(labels.shape[1], device=labels.device)
    # up to the column before the first target, whose prediction is needed
    limit = torch.where(labels != IGNORED, columns, labels.shape[1]).amin(1) - 1
    prefix = SharedPrefix(model, inputs, [0] * len(labels), limit)
    if not prefix.length or prefix.token_inputs.keys() - TEXT_INPUTS:
        return plain

    def build() -> Callable[[Rows], Tensor]:
        return _TreePass(model, prefix, labels).nll

    return fast_path.choose(model, plain, build, lambda nll: {"losses": [nll(range(min(_VERIFIED_ROWS, len(labels))))]})


class _TreePass:
    """The prompt's cache, and the rows' own tokens behind it."""

    def __init__(self, model: Any, prefix: SharedPrefix, labels: Tensor) -> None:
        self.model, self.length = model, prefix.length
        self.cache = prefix.run(model)
        # text, whose three positions are equal with multimodal RoPE
        self.first_position = int(prefix.positions[..., 0, int(prefix.starts[0]) + prefix.length].max())
        ids, starts, ends = prefix.token_inputs["input_ids"].tolist(), prefix.starts.tolist(), prefix.ends.tolist()
        spans = [slice(start + prefix.length, end) for start, end in zip(starts, ends, strict=True)]
        self.tails = [row[span] for row, span in zip(ids, spans, strict=True)]
        self.is_target = [
            [label != IGNORED for label in row[span]] for row, span in zip(labels.tolist(), spans, strict=True)
        ]

    def nll(self, rows: Rows) -> Tensor:
        """Return the summed NLL of some rows."""
        return torch.cat(
            [self._tree_nll(rows[start : start + _TREE_ROWS]) for start in range(0, len(rows), _TREE_ROWS)]
        )

    def _tree_nll(self, rows: Rows) -> Tensor:
        tails = [self.tails[row] for row in rows]
        nodes: dict[tuple[int, ...], int] = {}
        for tail in tails:
            for end in range(1, len(tail)):  # a row's last token is predicted, but predicts nothing
                nodes.setdefault(tuple(tail[:end]), len(nodes))
        log_probs = self._run(nodes).log_softmax(-1)
        scored = [
            (place, nodes[tuple(tail[:end])], tail[end])
            for place, (row, tail) in enumerate(zip(rows, tails, strict=True))
            for end in range(1, len(tail))
            if self.is_target[row][end]
        ]
        places, parents, tokens = torch.tensor(scored, device=log_probs.device).T
        return log_probs.new_zeros(len(rows)).index_add(0, places, -log_probs[parents, tokens])

    def _run(self, nodes: Mapping[tuple[int, ...], int]) -> Tensor:
        """Return the logits of all nodes, (N, V) float32."""
        count, parameter = len(nodes), next(self.model.parameters())
        visible = torch.zeros(count, self.length + count, dtype=torch.bool)
        visible[:, : self.length] = True
        for path, node in nodes.items():
            if len(path) > 1:
                visible[node] = visible[nodes[path[:-1]]]
            visible[node, self.length + node] = True
        # a float mask, which all kinds of attention add to their scores
        hidden = torch.zeros(visible.shape, dtype=parameter.dtype).masked_fill(
            ~visible, torch.finfo(parameter.dtype).min
        )
        depths = [len(path) - 1 for path in nodes]
        inputs = {
            "input_ids": torch.tensor([[path[-1] for path in nodes]], device=parameter.device),
            "attention_mask": hidden[None, None].to(parameter.device),
            "position_ids": torch.tensor([depths], device=parameter.device) + self.first_position,
            "past_key_values": copy.deepcopy(self.cache),
            "use_cache": True,
        }
        logits: Tensor = last_logits(self.model, inputs, count).logits[0].float()
        return logits
