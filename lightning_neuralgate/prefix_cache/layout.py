"""The split of a training batch into shared prefixes and own tokens, as a typed entry of the batch.

A batch that carries a `BatchLayout` under `LAYOUT` is run in two forward passes (`EditPass`). A hook inside the model sees
the tokens of one of them; `BatchLayout.segment` names their places in the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neuralgate.hf.forward import IGNORED, columns_with_targets
from lightning_neuralgate.prefix_cache.prefix import SharedPrefix, with_tensors_on

LAYOUT = "layout"
"""The batch's key of its `BatchLayout`."""


@dataclass(frozen=True)
class Segment:
    """The tokens of one forward pass, as places in the batch.

    Attributes:
        rows: (R,), for each row of the pass a row of the batch; one may stand for several that are equal so far.
        columns: (R, Q), the column of each token in that row.
        real: (R, Q) bool, False at padding.
        is_first: whether this is the first pass over the batch.

    Example:
        >>> segment = Segment(torch.tensor([1]), torch.tensor([[1, 2]]), torch.tensor([[True, True]]), is_first=True)
        >>> segment.select(torch.tensor([[True, True, True], [False, False, True]]))
        tensor([[False,  True]])
    """

    rows: Tensor
    columns: Tensor
    real: Tensor
    is_first: bool

    def select(self, mask: Tensor) -> Tensor:
        """Return a mask of the batch, (B, T) bool, at the tokens of this pass, (R, Q)."""
        return mask[self.rows].gather(1, self.columns) & self.real

    def to(self, device: Any, **options: Any) -> Segment:
        """Return a copy on a device."""
        return with_tensors_on(self, device, **options)


class BatchLayout:
    """Shared prefixes and own tokens of a training batch.

    Rows of one record and subject share what they begin with; a row without a subject is run alone. Making a layout reads
    values of the batch, so it is best done before the batch is moved to a device, and moved along.

    Args:
        model: the Hugging Face model.
        batch: a collated batch in which every row has a target.

    Attributes:
        prefix: the shared prefixes; they end before any subject or target.
        own: the tokens behind them, aligned at the rows' ends.
        labels: (B, K), the last columns of the own tokens' labels, up to the first target of any row.
        segment: the tokens of the forward pass that is running; None outside.
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        self.prefix = SharedPrefix(model, batch, _groups(batch), _limit(batch))
        self.own = self.prefix.own_tokens(self.prefix.ends)
        labels = torch.where(self.own.real, batch["labels"].gather(1, self.own.columns), IGNORED)
        self.labels = labels[:, -columns_with_targets(labels) :]
        self.segment: Segment | None = None
        columns = self.prefix.columns[self.prefix.leaders]
        self._prefix_segment = Segment(self.prefix.leaders, columns, torch.ones_like(columns, dtype=torch.bool), True)
        rows = torch.arange(len(labels), device=labels.device)
        self._own_segment = Segment(rows, self.own.columns, self.own.real, False)

    def is_shared(self, mask: Tensor) -> bool:
        """Return whether a mask of the batch, (B, T), is the same in all rows that share a prefix, at its tokens."""
        inside = mask.gather(1, self.prefix.columns)
        return bool((inside == inside[self.prefix.leaders[self.prefix.group_index]]).all())

    def running_prefix(self) -> Any:
        """Context manager: the forward pass inside runs the shared prefixes."""
        return self._running(self._prefix_segment)

    def running_own(self) -> Any:
        """Context manager: the forward pass inside runs the own tokens."""
        return self._running(self._own_segment)

    @contextmanager
    def _running(self, segment: Segment) -> Iterator[None]:
        self.segment = segment
        try:
            yield
        finally:
            self.segment = None

    def to(self, device: Any, **options: Any) -> BatchLayout:
        """Return a copy on a device."""
        return with_tensors_on(self, device, **options)


class LayoutProvider(ABC):
    """A LightningModule whose training batches may carry a `BatchLayout`; `PrivacyPairDataModule` adds it to them."""

    @abstractmethod
    def batch_layout(self, batch: Mapping[str, Any]) -> BatchLayout | None:
        """Return the layout of a training batch, which is still on the CPU, or None to run full rows."""


def _groups(batch: Mapping[str, Any]) -> list[Any]:
    names = zip(batch["record_id"], batch["subject"], strict=True)
    return [(record, subject) if subject else row for row, (record, subject) in enumerate(names)]


def _limit(batch: Mapping[str, Any]) -> Tensor:
    """The first column of each row, (B,), that holds its subject or predicts a target."""
    subject, target = batch["subject_mask"].bool(), batch["labels"] != IGNORED
    columns = torch.arange(subject.shape[1], device=subject.device)
    return torch.where(subject | target.roll(-1, 1), columns, subject.shape[1]).amin(1)
