"""Rows that the gate closed stay bit-identical, whatever the optimizer would do to them.

A row without gradient can still move: AdamW's weight decay shrinks it, and momentum from before the gate carries it on. So
the weights are kept before each step of the optimizer, and rows that no sample has opened since the last step are put back
after it. This is done inside the optimizer's own `step`, so nobody sees the rows in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.autograd import GatedPlace


class ClosedRows:
    """Keeps closed rows through the steps of an optimizer.

    Args:
        places: name -> what is gated there, sharded if it is sharded; what the optimizer does not train is left out.
        optimizer: the optimizer.
    """

    def __init__(self, places: Mapping[str, GatedPlace], optimizer: Optimizer) -> None:
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._rows = [
            (name, getattr(module, row))
            for name, place in places.items()
            for module, row in place.rows
            if id(getattr(module, row)) in trained
        ]
        self._opened: dict[str, Tensor] = {}
        self._due: dict[str, Tensor] | None = None
        self._before: list[Tensor] = []
        self._handles: list[RemovableHandle] = []
        if self._rows:
            self._handles += [
                optimizer.register_step_pre_hook(self._keep),
                optimizer.register_step_post_hook(self._put_back),
            ]

    @property
    def parameters(self) -> list[Tensor]:
        """What is kept."""
        return [parameter for _, parameter in self._rows]

    def saw(self, place: str, gate_values: Tensor) -> None:
        """A forward pass in which rows were open as `gate_values`, (B, d), says."""
        opened = (gate_values != 0).any(0)
        self._opened[place] = opened | self._opened.get(place, torch.zeros_like(opened))

    def begin_step(self) -> None:
        """What was opened so far belongs to the step to come; if that is skipped, it is forgotten."""
        self._due, self._opened = self._opened, {}

    def _keep(self, *_: Any) -> None:
        self._before = [_local(parameter).clone() for _, parameter in self._rows]

    def _put_back(self, *_: Any) -> None:
        if self._due is None:  # a step that Lightning did not announce
            self.begin_step()
        with torch.no_grad():
            for (place, parameter), before in zip(self._rows, self._before, strict=True):
                closed = _local_rows(~self._opened_anywhere(place, parameter), parameter)
                _local(parameter)[closed] = before[closed]
        self._before, self._due = [], None

    def _opened_anywhere(self, place: str, parameter: Tensor) -> Tensor:
        """Rows that a sample opened on any process, (d,) bool."""
        nowhere = torch.zeros(parameter.shape[0], dtype=torch.bool, device=_local(parameter).device)
        opened = (self._due or {}).get(place, nowhere)
        if dist.is_available() and dist.is_initialized():
            count = opened.to(torch.uint8)
            dist.all_reduce(count, op=dist.ReduceOp.MAX)
            opened = count.bool()
        return opened

    def remove(self) -> None:
        """Let go of the optimizer."""
        while self._handles:
            self._handles.pop().remove()


def _local(parameter: Tensor) -> Tensor:
    """This process's part of a parameter, as a view."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter.detach()


def _local_rows(rows: Tensor, parameter: Any) -> Tensor:
    """This process's part of what belongs to a parameter's rows."""
    if not hasattr(parameter, "placements"):
        return rows
    from torch.distributed.tensor import distribute_tensor

    if not all(placement.is_replicate() or placement.is_shard(0) for placement in parameter.placements):
        raise UnsupportedSetupError(
            f"a gated weight is sharded as {parameter.placements}; scope 'all' keeps rows only where they are sharded by "
            "row, as FSDP2 does. Leave tensor parallelism off, or choose another scope"
        )
    local: Any = distribute_tensor(rows, parameter.device_mesh, parameter.placements)
    return local.to_local()
