"""In which order rows come, and to which process, so that a run that was broken off goes on with the next batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

Row = Any


class RowOrder(DistributedSampler[int]):
    """An order of rows that follows from seed and epoch alone, dealt out to the processes in turn.

    Every process gets equally many rows, as collective calls need it. Where they do not go round, rows come again, as `~row`
    instead of `row`, so that nobody has to count them twice.

    Args:
        count: number of rows.
        shuffle: a new order every epoch; off: as they come.
        seed: seeds the order.
        rank: this process.
        world: number of processes.

    Example:
        >>> [list(RowOrder(3, shuffle=False, rank=rank, world=2)) for rank in (0, 1)]
        [[0, 2], [1, -1]]
    """

    def __init__(self, count: int, shuffle: bool = True, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        # Lightning leaves a DistributedSampler where it finds one
        super().__init__(range(count), world, rank, shuffle, seed)  # type: ignore[arg-type]
        self.count = count
        self.start = 0
        """Rows of this process that are left out at the beginning of the epoch."""

    def _whole(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.count))
        # which number of the seed's stream is arbitrary; these are the ones that a DataLoader(shuffle=True) draws after
        # seed_everything(seed), with a validation every other epoch, with which the figures in docs/ were measured
        draws = torch.Generator().manual_seed(self.seed)
        drawn = torch.empty(2 + 2 * self.epoch + self.epoch // 2, dtype=torch.int64).random_(generator=draws)[-1]
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(int(drawn)))
        return [int(row) for row in order]

    @override
    def __iter__(self) -> Iterator[int]:
        order = self._whole()
        for place in range(self.start, len(self)):
            index = place * self.num_replicas + self.rank
            yield order[index] if index < self.count else ~order[index % self.count]

    @override
    def __len__(self) -> int:
        return math.ceil(self.count / self.num_replicas)


class _Rows(Dataset[Row]):
    def __init__(self, rows: Sequence[Row], again: Callable[[Row], Row] | None) -> None:
        self.rows, self.again = rows, again

    def __getitem__(self, index: int) -> Row:
        if index >= 0:
            return self.rows[index]
        return self.rows[~index] if self.again is None else self.again(self.rows[~index])

    def __len__(self) -> int:
        return len(self.rows)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over rows in `RowOrder`, which Lightning can save and go on with in the middle of an epoch.

    Args:
        rows: the rows.
        order: their order.
        again: makes a row that comes for the second time out of the row; None leaves it as it is.
        options: arguments of `DataLoader`; another `sampler` takes the place of the order, as Lightning asks for to
            overfit.
    """

    def __init__(
        self, rows: Sequence[Row], order: RowOrder, again: Callable[[Row], Row] | None = None, **options: Any
    ) -> None:
        options = {"sampler": order, **options, "dataset": _Rows(rows, again)}
        super().__init__(**options)
        self.rows, self.order, self.again = rows, order, again
        self._resumed: tuple[int, int] | None = None
        self._handed_out = 0

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator, so that all this happens when the first batch is asked for: Lightning says the epoch after `iter`
        epoch, batches = self._resumed or (self.order.epoch, 0)
        self._resumed = None
        self._handed_out = batches if epoch == self.order.epoch else 0
        self.order.start = self._handed_out * (self.batch_size or 1)
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the epoch stands."""
        return {"epoch": self.order.epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there, with the next epoch that is iterated over if it is that one."""
        self._resumed = (state["epoch"], state["batches"])
