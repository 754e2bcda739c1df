"""Forward passes and the loss that both stages minimize: the mean negative log-likelihood per target token.

    L = L_sen + alpha * L_ben          (stage 1 adds beta * mean|v - 2|, stage 2 an optional retention term)

L_sen is the mean over the sensitive rows, with a refusal prefix as target, and L_ben the mean over the benign rows, with the
unedited model's answer as target.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_neuralgate.hf.decoder import find_hf_model

IGNORED = -100
"""Label of tokens without a loss: the default `ignore_index` of torch's cross entropy."""
_NOT_MODEL_INPUTS = {"labels", "subject_mask"}


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the entries of a batch that a model's forward accepts."""
    return {key: value for key, value in batch.items() if isinstance(value, Tensor) and key not in _NOT_MODEL_INPUTS}


def columns_with_targets(labels: Tensor) -> int:
    """Return the number of columns, counted from the last, that contain all targets of a batch, (B, T) -> int."""
    return labels.shape[1] - int((labels != IGNORED).any(0).nonzero()[0, 0])


def row_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean negative log-likelihood per target token of each row, in nats, float32.

    Args:
        logits: (B, K, V), the predictions for K columns.
        labels: (B, K), the target tokens; -100 where there is no target.

    Returns:
        (B,)
    """
    # flattened, so that the vocabulary is contiguous: a strided softmax takes several times as long
    nll = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view_as(labels).sum(1) / (labels != IGNORED).sum(1)


def last_logits(model: Any, inputs: Mapping[str, Any], count: int) -> Any:
    """Run a forward pass and return the output with the `logits` of the last `count` positions only.

    Models that support `logits_to_keep` do not compute the others.
    """
    if "logits_to_keep" in inspect.signature(find_hf_model(model).forward).parameters:
        sequence = next(inputs[key] for key in ("input_ids", "inputs_embeds") if key in inputs)
        # indices, not a slice: a slice is a strided view, whose product with the vocabulary is computed row by row
        last = torch.arange(sequence.shape[1] - count, sequence.shape[1], device=sequence.device)
        return model(**inputs, logits_to_keep=last)
    output = model(**inputs)
    output.logits = output.logits[:, -count:]
    return output


def row_kl(logits: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean of KL(p0 || p) per target token of each row, in nats, float32.

    Args:
        logits: (B, K, V), the predictions p for K columns.
        reference: (B, K, V), the logits of p0.
        labels: (B, K), the target tokens; -100 where there is no target.

    Returns:
        (B,)

    Example:
        >>> p0, p = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.25, 0.75]]])
        >>> row_kl(p.log(), p0.log(), torch.tensor([[1]]))  # 0.5 ln 2 + 0.5 ln (2 / 3)
        tensor([0.1438])
    """
    predicted, expected = (values.float().log_softmax(-1) for values in (logits, reference))
    divergence = F.kl_div(predicted, expected, reduction="none", log_target=True).sum(-1)
    has_target = labels != IGNORED
    return divergence.masked_fill(~has_target, 0.0).sum(1) / has_target.sum(1)


def batch_nll(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Compute the mean NLL per target token of each row of a collated batch, (B,)."""
    return row_nll(*batch_predictions(model, batch))


def batch_predictions(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the logits of the columns with targets, (B, K, V), and their labels, (B, K), of a collated batch."""
    # reading the labels would force a device sync
    count = batch.get("target_columns") or columns_with_targets(batch["labels"])
    output = last_logits(model, {**model_inputs(batch), "use_cache": False}, count + 1)
    return output.logits[:, :-1], batch["labels"][:, -count:]
