"""The quantity that both stages minimize: the mean negative log-likelihood per target token.

    L = L_sen + alpha * L_ben          (stage 1 adds beta * mean|v - 2|, stage 2 an optional retention term)

L_sen is the mean over the sensitive rows (refusal prefix as target), L_ben over the benign rows (the unedited model's
own answer as target).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_neuralgate.hf.decoder import find_hf_model

_NOT_FOR_MODEL = {"labels", "subject_mask"}


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The part of a batch that a model's forward takes."""
    return {key: value for key, value in batch.items() if isinstance(value, Tensor) and key not in _NOT_FOR_MODEL}


IGNORED = -100
"""Label of tokens that no loss is taken on (the convention of torch's cross entropy)."""


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
