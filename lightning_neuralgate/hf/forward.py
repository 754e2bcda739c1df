"""The quantity that both stages minimize: the mean negative log-likelihood per target token.

    L = L_sen + alpha * L_ben          (stage 1 adds beta * mean|v - 2|, stage 2 an optional retention term)

L_sen is the mean over the sensitive rows (refusal prefix as target), L_ben over the benign rows (the unedited model's
own answer as target).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_neuralgate.data.collator import IGNORED
from lightning_neuralgate.hf.decoder import find_hf_model
from lightning_neuralgate.hf.generation import model_inputs


def columns_with_targets(labels: Tensor) -> int:
    """How many of the last columns hold all targets of a batch, (B, T) -> int."""
    return labels.shape[1] - int((labels != IGNORED).any(0).nonzero()[0, 0])


def row_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood per target token of each row, in nats, float32.

    Args:
        logits: (B, K, V), the predictions for K columns.
        labels: (B, K), what stands there; -100 where there is no target.

    Returns:
        (B,)
    """
    # the vocabulary last and side by side: across the memory its softmax takes several times as long
    each = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    each = each.view_as(labels)
    targets = labels != IGNORED
    return each.sum(1) / targets.sum(1)


def last_logits(model: Any, inputs: Mapping[str, Any], count: int) -> Any:
    """A forward pass whose `logits` are those of the last `count` positions only, where the model can be asked to."""
    if "logits_to_keep" in inspect.signature(find_hf_model(model).forward).parameters:
        given = next(inputs[key] for key in ("input_ids", "inputs_embeds") if key in inputs)
        # as indices: a slice would be a view, and its product with the vocabulary one product a row
        last = torch.arange(given.shape[1] - count, given.shape[1], device=given.device)
        return model(**inputs, logits_to_keep=last)
    output = model(**inputs)
    output.logits = output.logits[:, -count:]
    return output


def batch_nll(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Mean NLL per target token of each row of a collated batch, (B,)."""
    # who asks the labels waits for the device
    count = batch.get("target_columns") or columns_with_targets(batch["labels"])
    output = last_logits(model, {**model_inputs(batch), "use_cache": False}, count + 1)
    return row_nll(output.logits[:, :-1], batch["labels"][:, -count:])


def mean_by_role(nll: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
    """Mean over the rows of each role that occurs: role -> scalar."""
    means = {}
    for role in dict.fromkeys(roles):
        # rows that are chosen by a tensor would be counted first, and the device waited for
        means[role] = torch.stack([row for row, other in zip(nll.unbind(), roles, strict=True) if other == role]).mean()
    return means


def role_weights(
    roles: Sequence[str], records: Sequence[str], weights: Mapping[str, float], device: torch.device
) -> Tensor:
    """What each row counts, (B,) float32: summed over a record's rows, `weights * nll` is its weighted sum of roles' means.

    >>> roles = ["sensitive", "sensitive", "benign"]
    >>> role_weights(roles, ["r"] * 3, {"sensitive": 1.0, "benign": 1.25}, torch.device("cpu"))
    tensor([0.5000, 0.5000, 1.2500])
    """
    rows = list(zip(roles, records, strict=True))
    # in half-precision training the default type is another
    return torch.tensor([weights[row[0]] / rows.count(row) for row in rows], dtype=torch.float32, device=device)
