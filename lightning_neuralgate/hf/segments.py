"""Parts of a batch that are run one after another, and how what looks at the whole batch finds its place in each.

A hook sees the tokens of one pass. Where a batch is run in parts, `Segment` says which of the batch's tokens these are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Where the tokens of a pass stand in the batch.

    Attributes:
        rows: (R,), for each row of the pass a row of the batch; one may stand for several that are alike so far.
        columns: (R, Q), the column of each of its tokens in that row.
        real: (R, Q) bool, without padding.
        first: whether the batch's passes begin with this one.

    Example:
        >>> import torch
        >>> segment = Segment(torch.tensor([1]), torch.tensor([[1, 2]]), torch.tensor([[True, True]]), True)
        >>> segment.of(torch.tensor([[True, True, True], [False, False, True]]))
        tensor([[False,  True]])
    """

    rows: Tensor
    columns: Tensor
    real: Tensor
    first: bool

    def to(self, device: Any, **options: Any) -> Segment:
        """The same on a device."""
        rows, columns, real = (part.to(device, **options) for part in (self.rows, self.columns, self.real))
        return Segment(rows, columns, real, self.first)

    def of(self, mask: Tensor) -> Tensor:
        """What a mask of the whole batch, (B, T) bool, says of this pass, (R, Q)."""
        return mask[self.rows].gather(1, self.columns) & self.real


_RUNNING: ContextVar[Segment | None] = ContextVar("running_segment", default=None)


def running_segment() -> Segment | None:
    """The part of the batch that is being run; None where it is run as a whole."""
    return _RUNNING.get()


@contextmanager
def running(segment: Segment) -> Iterator[None]:
    """While the block runs, passes are of this part of the batch."""
    token = _RUNNING.set(segment)
    try:
        yield
    finally:
        _RUNNING.reset(token)
