"""Bit-exact masking of rows and columns: those that the gate masks do not change, whatever the optimizer does to them.

A row without a gradient can still move: AdamW's weight decay shrinks it, and momentum from earlier steps carries it on. So
the weights are copied before each step of the optimizer, and rows that no sample has unmasked since the last step are
restored after it. Both happen inside the optimizer's `step`, so no other code sees the changed rows.
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
from lightning_neuralgate.gate.autograd import GatedModule


class MaskedRowRestorer:
    """Restore the masked rows and columns of gated parameters after each step of an optimizer.

    Args:
        modules: name -> gated module; with sharded parameters if the model is sharded. Parameters that the optimizer does
            not train are skipped.
        optimizer: the optimizer.
        rows: whether rows that no sample has unmasked since the last step are restored.
        columns: name -> the open columns of the module's weight, (k,) bool; all others are restored in each step.
    """

    def __init__(
        self,
        modules: Mapping[str, GatedModule],
        optimizer: Optimizer,
        rows: bool = True,
        columns: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._rows, self._open_columns = rows, dict(columns or {})
        optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._parameters = [
            (name, getattr(owner, parameter))
            for name, module in modules.items()
            for owner, parameter in module.parameters
            if id(getattr(owner, parameter)) in optimized
        ]
        self._unmasked: dict[str, Tensor] = {}
        self._unmasked_in_step: dict[str, Tensor] | None = None
        self._copies: list[Tensor] = []
        self._handles: list[RemovableHandle] = []
        if self._parameters:
            self._handles += [
                optimizer.register_step_pre_hook(self._copy),
                optimizer.register_step_post_hook(self._restore),
            ]

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters whose masked rows are restored."""
        return [parameter for _, parameter in self._parameters]

    def record(self, name: str, gate_values: Tensor) -> None:
        """Record the gate values, (B, d), of a forward pass of a gated module: nonzero ones unmask their rows."""
        unmasked = (gate_values != 0).any(0)
        self._unmasked[name] = unmasked | self._unmasked.get(name, torch.zeros_like(unmasked))

    def start_step(self) -> None:
        """Use the rows recorded so far for the next step only, even if an overflow makes a GradScaler skip that step."""
        self._unmasked_in_step, self._unmasked = self._unmasked, {}

    def _copy(self, *_: Any) -> None:
        self._copies = [_local(parameter).clone() for _, parameter in self._parameters]

    def _restore(self, *_: Any) -> None:
        if self._unmasked_in_step is None:  # the torch optimizer was stepped directly, without Lightning's hooks
            self.start_step()
        with torch.no_grad():
            for (name, parameter), copy in zip(self._parameters, self._copies, strict=True):
                weights = _local(parameter)
                if self._rows:
                    masked = _local_rows(~self._unmasked_on_any_rank(name, parameter), parameter)
                    weights[masked] = copy[masked]
                if name in self._open_columns and weights.ndim == 2:
                    closed = ~self._open_columns[name].to(weights.device)
                    weights[:, closed] = copy[:, closed]
        self._copies, self._unmasked_in_step = [], None

    def _unmasked_on_any_rank(self, name: str, parameter: Tensor) -> Tensor:
        """Return the rows that a sample unmasked on any process, (d,) bool."""
        none = torch.zeros(parameter.shape[0], dtype=torch.bool, device=_local(parameter).device)
        unmasked = (self._unmasked_in_step or {}).get(name, none)
        if dist.is_available() and dist.is_initialized():
            flags = unmasked.to(torch.uint8)
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            unmasked = flags.bool()
        return unmasked

    def remove(self) -> None:
        """Remove the hooks from the optimizer."""
        while self._handles:
            self._handles.pop().remove()


def _local(parameter: Tensor) -> Tensor:
    """Return this process's shard of a parameter, as a view."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter.detach()


def _local_rows(rows: Tensor, parameter: Any) -> Tensor:
    """Return the part of a mask of a parameter's rows that belongs to this process's shard."""
    if not hasattr(parameter, "placements"):
        return rows
    from torch.distributed.tensor import distribute_tensor

    if not all(placement.is_replicate() or placement.is_shard(0) for placement in parameter.placements):
        raise UnsupportedSetupError(
            f"a gated weight is sharded as {parameter.placements}; scope 'all' needs weights that are sharded by row, as "
            "FSDP2 does. Leave tensor parallelism off, or choose another scope"
        )
    local: Any = distribute_tensor(rows, parameter.device_mesh, parameter.placements)
    return local.to_local()
