"""A distributed sampler and a DataLoader whose order is reproducible, so that training can resume within an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override


class ResumableSampler(DistributedSampler[int]):
    """Sample row indices in an order that depends on seed and epoch alone, round-robin over the processes.

    Every process gets the same number of indices, because collective calls need it. If the rows do not divide evenly, some
    are repeated, as `~index` instead of `index`, so that metrics can skip the duplicates.

    Args:
        count: number of rows.
        shuffle: draw a new order every epoch; otherwise keep the given order.
        seed: seed of the order.
        rank: rank of this process.
        world: number of processes.

    Example:
        >>> [list(ResumableSampler(3, shuffle=False, rank=rank, world=2)) for rank in (0, 1)]
        [[0, 2], [1, -1]]
    """

    def __init__(self, count: int, shuffle: bool = True, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        # a DistributedSampler, because Lightning replaces any other sampler in distributed runs
        super().__init__(range(count), world, rank, shuffle, seed)  # type: ignore[arg-type]
        self.count = count
        self.start = 0
        """Number of this process's rows to skip at the start of the epoch."""

    def _epoch_order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.count))
        # Any draw of the generator works. This one reproduces DataLoader(shuffle=True) after seed_everything(seed), with
        # validation every other epoch, which gave the results in docs/
        draws = torch.Generator().manual_seed(self.seed)
        epoch_seed = torch.empty(2 + 2 * self.epoch + self.epoch // 2, dtype=torch.int64).random_(generator=draws)[-1]
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(int(epoch_seed)))
        return [int(row) for row in order]

    @override
    def __iter__(self) -> Iterator[int]:
        order = self._epoch_order()
        for step in range(self.start, len(self)):
            index = step * self.num_replicas + self.rank
            yield order[index] if index < self.count else ~order[index % self.count]

    @override
    def __len__(self) -> int:
        return math.ceil(self.count / self.num_replicas)


class _RowDataset(Dataset[Any]):
    def __init__(self, rows: Sequence[Any], mark_duplicate: Callable[[Any], Any] | None) -> None:
        self.rows, self.mark_duplicate = rows, mark_duplicate

    def __getitem__(self, index: int) -> Any:
        if index >= 0:
            return self.rows[index]
        return self.rows[~index] if self.mark_duplicate is None else self.mark_duplicate(self.rows[~index])

    def __len__(self) -> int:
        return len(self.rows)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose position within an epoch Lightning can save and restore.

    Args:
        rows: the rows.
        order: their sampler.
        mark_duplicate: function that marks a row that another process has, too; by default it is returned unchanged.
        options: arguments of `DataLoader`; a `sampler` among them replaces `order`, which Lightning needs for
            `overfit_batches`.
    """

    # Lightning recreates the loader from attributes named like these parameters
    def __init__(
        self,
        rows: Sequence[Any],
        order: ResumableSampler,
        mark_duplicate: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        options = {"sampler": order, **options, "dataset": _RowDataset(rows, mark_duplicate)}
        super().__init__(**options)
        self.rows, self.order, self.mark_duplicate = rows, order, mark_duplicate
        self._resume_position: tuple[int, int] | None = None
        self._batches_returned = 0

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator, so that this runs at the first batch: Lightning sets the epoch after calling `iter`
        epoch, batches = self._resume_position or (self.order.epoch, 0)
        self._resume_position = None
        self._batches_returned = batches if epoch == self.order.epoch else 0
        self.order.start = self._batches_returned * (self.batch_size or 1)
        for batch in super().__iter__():
            self._batches_returned += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of batches returned in it."""
        return {"epoch": self.order.epoch, "batches": self._batches_returned}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved state if the next iteration is of that epoch; any other epoch starts at its first batch."""
        self._resume_position = (state["epoch"], state["batches"])
