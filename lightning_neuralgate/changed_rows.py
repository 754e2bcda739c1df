"""How many rows of the gated projections differ, bit for bit, from what they were when training with the gate began.

A copy of the weights would say so, and take their memory. Kept instead is one 64-bit number a row,

    f = sum_k a_k * bits(W[j, k])  modulo 2^64,  a_k odd,

which is another one whenever a single element of the row is another one, since odd numbers have an inverse modulo 2^64. Rows
that differ in several elements share it with a probability of about 2^-64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neuralgate.gate.autograd import GatedPlace

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PARTS = 128
"""A weight is gone through in so many parts: what is held at a time is 8 bytes an element of one of them."""


class ChangedRows:
    """Remembers the rows of gated places, and tells which share of them has changed.

    Of a weight its rows count (of a bias that trains alone, its entries), of an adapter those of its last factor.

    Attributes:
        beginning: name -> fingerprints of a place's rows when training began, (d,) int64 on the CPU; fit for a checkpoint.
    """

    def __init__(self) -> None:
        self.beginning: dict[str, Tensor] = {}
        self._resumed: dict[str, Tensor] = {}

    def resume(self, beginning: Mapping[str, Tensor]) -> None:
        """Compare, in the training that starts next, with the `beginning` of an earlier one."""
        self._resumed.update(beginning)

    def begin(self, places: Mapping[str, GatedPlace]) -> None:
        """Training starts; places without an earlier beginning begin now. Every process has to call this."""
        found = {name: fingerprints(_rows(place)) for name, place in places.items()}
        self.beginning = {name: self._resumed.get(name, rows) for name, rows in found.items() if rows is not None}
        self._resumed = {}

    def share(self, name: str, place: GatedPlace) -> float | None:
        """Share of a place's rows that differ from the beginning, in [0, 1], the same in every process.

        None where the weight is not sharded by rows. Every process has to call this.
        """
        if name not in self.beginning:
            return None
        now = fingerprints(_rows(place))
        return None if now is None else float((now != self.beginning[name]).double().mean())

    def forget_resumed(self) -> None:
        """Training is over, or did not come to start."""
        self._resumed = {}


def fingerprints(parameter: Tensor) -> Tensor | None:
    """One number for each row of a parameter, (d,) int64 on the CPU; of a vector, for each entry.

    Of a DTensor that is sharded by rows every process gets those of all rows, of one that is sharded otherwise none.

    >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> before = fingerprints(weight)
    >>> weight[1, 0] = 3.0000002
    >>> fingerprints(weight) != before
    tensor([False,  True])
    """
    whole: Any = parameter
    if not hasattr(whole, "placements"):
        return _fingerprints(whole.detach()).cpu()
    from torch.distributed.tensor import DTensor

    if not all(placement.is_replicate() or placement.is_shard(0) for placement in whole.placements):
        return None
    local = _fingerprints(whole.detach().to_local())
    rows = DTensor.from_local(local, whole.device_mesh, whole.placements, shape=whole.shape[:1], stride=(1,))
    return rows.full_tensor().cpu()


def _fingerprints(values: Tensor) -> Tensor:
    rows = values[:, None] if values.ndim == 1 else values
    # numpy promises that a seeded bit generator stays as it is, so checkpoints can be compared with; torch does not
    odd = np.random.PCG64(0).random_raw(rows.shape[1]).view(np.int64) | 1
    factors = torch.from_numpy(odd).to(rows.device)
    found = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    step = max(1, len(rows) // _PARTS)
    for start in range(0, len(rows), step):
        bits = rows[start : start + step].view(_BITS[rows.element_size()]).to(torch.int64, copy=True)
        found[start : start + step] = bits.mul_(factors).sum(1)  # integers wrap around
    return found


def _rows(place: GatedPlace) -> Tensor:
    module, name = place.rows[0]
    parameter: Tensor = getattr(module, name)
    return parameter
