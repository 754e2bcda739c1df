"""Keep a training's change of MLP output projections out of the span of ordinary inputs.

Each optimizer step of a weight W is projected: W <- W' + (W - W') P, where W' is the weight before the step and P the
projection of `InputCovariance.projector`. So the change since the start of training is W0 + (sum of steps) P; with a hard P
this is W0 + (W - W0) P after every step. Projecting the gradient would not do: element-wise optimizers such as Adam leave
the subspace. The steps are projected, and not W - W0, so that resumed trainings need no copy of W0, and rows without a step
stay bit-identical.

Of a LoRA, W0 + s B A, the factor A is projected: the product's change is then s B (A P). A bias answers to every input, so
it is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.keys import InputCovariance, KeyProjector, check_strength
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.distributed import all_ranks, reshard

_Entry = tuple[nn.Module, str, KeyProjector | None]
"""Module, name of its parameter, and projection of the parameter's steps; None: the parameter does not change."""


class KeySpace:
    """Project the optimizer steps of MLP output projections away from ordinary inputs.

    Args:
        keep: the covariance of these inputs, or a folder or hub repository to load it from.
        share: hard projection, see `InputCovariance.projector`; not used with `soft`.
        soft: soft projection.

    Raises:
        ValueError: share or soft is out of range.
        KeysFormatError: there is no input covariance at `keep`.
    """

    def __init__(self, keep: InputCovariance | str | Path, share: float, soft: float | None) -> None:
        check_strength(share if soft is None else None, soft)
        self.covariance = keep if isinstance(keep, InputCovariance) else InputCovariance.from_pretrained(keep)
        self.share, self.soft = share if soft is None else None, soft
        self.removed: dict[int, float] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def settings(self) -> str:
        """Covariance and strength, as one line."""
        strength = f"share {self.share}" if self.soft is None else f"soft {self.soft}"
        return f"{self.covariance.fingerprint}, {strength}"

    def start(
        self, module: nn.Module, layers: Sequence[int], optimizers: Sequence[Optimizer], resumed: bool = False
    ) -> None:
        """Register hooks at the steps of the optimizers. Every process has to call this.

        Args:
            module: the module that trains.
            layers: its decoder layers whose MLP output projections to keep in key space.
            optimizers: all optimizers of the training.
            resumed: whether an earlier part of the training was projected, too. If not, the first factors of adapters are
                projected now, which changes nothing as long as the adapters are fresh.

        Raises:
            GateMismatchError: the inputs were collected in another model, or a layer was not collected.
            UnsupportedSetupError: what trains in a projection cannot be projected, or nothing trains there.
        """
        if not resumed:  # resumed weights have changed already
            self.covariance.check_fits(module)
        reshard(module)
        layout = find_decoder(module)
        entries: list[_Entry] = []
        for layer in layers:
            projection = layout.output_projection(layer)
            trained = trained_parameters(projection, layout.projection_path(layer))
            projector = self._projector(layer, next(projection.parameters()).device)
            self.removed[layer] = projector.removed
            rank_zero_info(
                f"layer {layer}: the change is kept out of {projector.removed:.1f} of {projector.size} directions"
            )
            if not resumed:
                _project_fresh_adapters(projection, projector, layout.projection_path(layer))
            entries += [(owner, name, projector if is_projected else None) for owner, name, is_projected in trained]
        self._register(entries, optimizers)

    def _projector(self, layer: int, device: torch.device) -> KeyProjector:
        """Return the projection of a layer, the same in all processes, bit for bit."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.covariance.projector(layer, self.share, self.soft, device).to(device)
        size = len(self.covariance.covariance(layer))
        computed = self.covariance.projector(layer, self.share, self.soft, device) if dist.get_rank() == 0 else None
        count = torch.tensor([0 if computed is None else len(computed.strengths)], device=device)
        dist.broadcast(count, 0)
        shared = [torch.empty(size, int(count), device=device), torch.empty(int(count), device=device)]
        if computed is not None:
            shared = [computed.directions.to(device), computed.strengths.to(device)]
        for tensor in shared:
            dist.broadcast(tensor, 0)
        return KeyProjector(*shared)

    def _register(self, entries: Sequence[_Entry], optimizers: Sequence[Optimizer]) -> None:
        covered: set[int] = set()
        for optimizer in optimizers:
            optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            chosen = [entry for entry in entries if id(getattr(*entry[:2])) in optimized]
            covered |= {id(getattr(*entry[:2])) for entry in chosen}
            if chosen:
                step = _ProjectedStep([(getattr(*entry[:2]), entry[2]) for entry in chosen])
                self._handles += [
                    optimizer.register_step_pre_hook(step.copy),
                    optimizer.register_step_post_hook(step.project),
                ]
        if any(id(getattr(*entry[:2])) not in covered for entry in entries):
            raise UnsupportedSetupError(
                "a parameter of an MLP output projection trains, but is in no optimizer of the Trainer, so its steps cannot "
                "be projected: freeze it, or give it to an optimizer"
            )

    def remove(self) -> None:
        """Remove the hooks from the optimizers."""
        while self._handles:
            self._handles.pop().remove()


class _ProjectedStep:
    """Hooks of one optimizer: copy the parameters before each step, and project the step after it.

    A step that a GradScaler skips calls no hooks.
    """

    def __init__(self, parameters: Sequence[tuple[Tensor, KeyProjector | None]]) -> None:
        self.parameters = parameters
        self.copies: list[Tensor] = []

    def copy(self, *_: Any) -> None:
        self.copies = [_local(parameter).clone() for parameter, _ in self.parameters]

    def project(self, *_: Any) -> None:
        with torch.no_grad():
            for (parameter, projector), before in zip(self.parameters, self.copies, strict=True):
                local = _local(parameter)
                if projector is None:
                    local.copy_(before)
                else:
                    wide = torch.promote_types(local.dtype, torch.float32)
                    local.copy_(before.to(wide) + projector(local.to(wide) - before.to(wide)))
        self.copies = []


def trained_parameters(projection: nn.Module, path: str) -> list[tuple[nn.Module, str, bool]]:
    """Return what trains in a projection: module, name of its parameter, and whether its steps have to be projected.

    Weight and first factor of a LoRA are projected. The last factor moves freely and is left out. Biases are not projected,
    but have to be kept as they are.

    Args:
        projection: an `nn.Linear`, or one with a LoRA of peft.
        path: its path in the model, for the error message.

    Raises:
        UnsupportedSetupError: nothing trains, or something of which no change can be projected: DoRA, a quantized weight,
            another kind of layer or adapter, weights that are not sharded by row.
    """
    base = getattr(projection, "base_layer", projection)
    if not isinstance(base, nn.Linear) or not base.weight.is_floating_point():
        kind = "quantized" if isinstance(base, nn.Linear) else f"a {type(base).__name__}"
        raise UnsupportedSetupError(
            f"{path} is {kind}; only a change of an nn.Linear in floating point, or of a LoRA on it, can be kept in key "
            "space: load the model in float32 or bfloat16, or leave keep out"
        )
    first, last = (dict(getattr(projection, f"lora_{factor}", {})) for factor in "AB")
    found: list[tuple[nn.Module, str, bool]] = []
    free = 0
    for owner in projection.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            linear = owner is base or any(owner is factor for factor in (*first.values(), *last.values()))
            if not linear or not isinstance(owner, nn.Linear):
                raise UnsupportedSetupError(
                    f"{path}: the change by {type(owner).__name__} ({name}) cannot be kept in key space, only that of a "
                    "weight or of a plain LoRA (not DoRA); choose one of these, or leave keep out"
                )
            if any(owner is factor for factor in last.values()) and name == "weight":
                free += 1
                continue
            found.append((owner, name, name == "weight"))
            _local(parameter)  # checks its sharding
    if not found and not free:
        raise UnsupportedSetupError(
            f"nothing at {path} trains, so there is nothing to keep in key space: set requires_grad on its weight, put LoRA "
            "on it, or choose other layers"
        )
    return found


def _project_fresh_adapters(projection: nn.Module, projector: KeyProjector, path: str) -> None:
    """Project the first factors of a layer's LoRAs, A <- A P, whose last factors have to be zero."""
    factors: Mapping[str, Any] = dict(getattr(projection, "lora_A", {}))
    for name, first in factors.items():
        last: Any = projection.lora_B[name].weight  # type: ignore[index, union-attr]
        if not first.weight.requires_grad and not last.requires_grad:
            continue
        if not all_ranks(not bool(_local(last).any()), last.device):
            raise UnsupportedSetupError(
                f"{path}: adapter '{name}' is not fresh (its lora_B is not zero), so only a part of its change could be kept "
                "in key space: merge it into the weights and add a new one, or leave keep out"
            )
        with torch.no_grad():
            local = _local(first.weight)
            local.copy_(projector(local))


def _local(parameter: Any) -> Tensor:
    """Return this process's rows of a parameter, as a view.

    Raises:
        UnsupportedSetupError: the parameter is not sharded by row, so no process has complete rows.
    """
    if not hasattr(parameter, "to_local"):
        return parameter.detach()
    if not all(placement.is_replicate() or placement.is_shard(0) for placement in parameter.placements):
        raise UnsupportedSetupError(
            f"a weight is sharded as {parameter.placements}; keep needs weights that are sharded by row, as FSDP2 does. "
            "Leave tensor parallelism off, or leave keep out"
        )
    return parameter.to_local()
