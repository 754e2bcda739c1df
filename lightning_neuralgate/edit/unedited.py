"""Run a model with its unedited weights, or with a share of the edit: W0 + c (W - W0)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_neuralgate.edit.rounding import Rounding
from lightning_neuralgate.hf.distributed import is_sharded, reshard
from lightning_neuralgate.hf.master_weights import stored_dtypes, stored_values


class UneditedWeights:
    """A copy of the weights that an edit trains, as they are now, to scale the edit with.

    Under FSDP2, make it after sharding: it holds this process's shards. The factors of a LoRA are not copied, since their
    product is the edit.

    Args:
        model: the model, before any step of the edit.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._base: dict[str, Tensor] = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and ".lora_" not in name
        }

    @contextmanager
    def scaled(self, scale: float) -> Iterator[None]:
        """Replace W by W0 + scale (W - W0) in the block; 0 are the unedited weights, and 1 changes nothing.

        With sharded weights every process has to enter and leave the block.
        """
        if scale == 1:
            yield
            return
        projections: list[Any] = [part for part in self.model.modules() if hasattr(part, "lora_A")]
        scalings = [dict(part.scaling) for part in projections]
        edited = self._parameters()
        kept = {name: parameter.detach().clone() for name, parameter in edited.items()}
        try:
            saved = stored_values(self.model, kept)
            for name, parameter in edited.items():
                base = self._base[name] = self._base[name].to(parameter.device)
                # two roundings, as in `EditDelta.apply` on the saved weights, and none at 0
                _set(parameter, base + scale * (saved[name].to(base.dtype) - base) if scale else base)
            for part, scaling in zip(projections, scalings, strict=True):
                part.scaling.update({name: value * scale for name, value in scaling.items()})
            torch.clear_autocast_cache()  # it may hold the edited weights in half precision
            yield
        finally:
            for name, parameter in self._parameters().items():
                _set(parameter, kept[name])
            for part, scaling in zip(projections, scalings, strict=True):
                part.scaling.update(scaling)
            torch.clear_autocast_cache()

    def rounding(self) -> Rounding | None:
        """Count the weights that the edit changed and those whose change survives in the saved type.

        With sharded weights every process has to call this.

        Returns:
            The numbers, or None where the trained weights are saved as they are.
        """
        dtypes = stored_dtypes(self.model)
        pairs = [
            (self._base[name], value, dtypes[name]) for name, value in self._parameters().items() if name in dtypes
        ]
        if not pairs:
            return None
        counts = torch.stack([_count_changes(*pair) for pair in pairs]).sum(0)
        if is_sharded(self.model) and dist.is_initialized():
            dist.all_reduce(counts)
        return Rounding(str(pairs[0][2]).removeprefix("torch."), *map(int, counts))

    def _parameters(self) -> dict[str, nn.Parameter]:
        reshard(self.model)
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name] for name in self._base}


@torch.no_grad()
def _set(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.copy_(value)


@torch.no_grad()
def _count_changes(base: Tensor, value: Tensor, stored: torch.dtype) -> Tensor:
    """Return how many of this process's values differ from the base in float32 and in the stored type, (2,) int64."""
    before, after = (t.to_local() if hasattr(t, "to_local") else t for t in (base.to(value.device), value))
    return torch.stack([(before != after).sum(), (before.to(stored) != after.to(stored)).sum()])
