"""FSDP2 for a Hugging Face model inside a LightningModule, what differs when weights are sharded, and who is refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model

UNTRIED_STRATEGIES = ("DeepSpeedStrategy", "XLAFSDPStrategy")
"""Not shown to work with anything here."""


def refuse_strategies(strategy: object, names: Collection[str], who: str) -> None:
    """Refuse strategies by the names of their classes, derived ones too; their libraries need not be there.

    Raises:
        UnsupportedSetupError: naming the strategy and those that work.
    """
    for kind in type(strategy).__mro__:
        if kind.__name__ in names:
            raise UnsupportedSetupError(
                f"{who} has not been shown to work with {kind.__name__}; use 'ddp', or FSDP2 through ModelParallelStrategy"
            )


def uses_fsdp1(root: nn.Module) -> bool:
    """Whether parameters are parts of FSDP1's flat ones: between passes a process has a piece of each, without its shape."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return any(isinstance(part, FullyShardedDataParallel) for part in root.modules())


def hides_parameters(root: nn.Module) -> bool:
    """Whether FSDP1 has put flat parameters in the place of the model's own (`use_orig_params=False`)."""
    from torch.distributed.fsdp import FlatParameter

    return any(isinstance(parameter, FlatParameter) for parameter in root.parameters())


def first_rows(root: nn.Module, wanted: Sequence[tuple[nn.Parameter, int]]) -> list[torch.Tensor]:
    """The first so many rows of parameters of a module, on the CPU, gathered where they are sharded.

    Then every process has to call. Where FSDP1 has flattened them, `root` has to hold the outermost unit, and no more than
    one unit is gathered at a time.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    found: dict[int, torch.Tensor] = {}
    for unit in root.modules():  # the outermost first: FSDP1 takes the one that is used first for the root
        if isinstance(unit, FullyShardedDataParallel):
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
                own = {id(parameter) for part in _parts(unit) for parameter in part.parameters(recurse=False)}
                found.update({id(p): p.detach()[:rows].cpu().clone() for p, rows in wanted if id(p) in own})
    for parameter, rows in wanted:
        if id(parameter) not in found:
            sample: Any = parameter.detach()[:rows]
            found[id(parameter)] = (sample.full_tensor() if hasattr(sample, "full_tensor") else sample).cpu()
    return [found[id(parameter)] for parameter, _ in wanted]


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of an FSDP1 unit, without those of the units inside."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    yield module
    for child in module.children():
        if not isinstance(child, FullyShardedDataParallel):
            yield from _parts(child)


def shard(module: nn.Module, mesh: Any) -> None:
    """Shard a model over the data-parallel part of a device mesh, layer by layer, in place.

    For `configure_model` under `ModelParallelStrategy`. Doing it twice is harmless.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    model = find_hf_model(module)
    if isinstance(model, FSDPModule):
        return
    data_parallel = mesh["data_parallel"]
    for layer in find_decoder(model).layers:
        fully_shard(layer, mesh=data_parallel)
    fully_shard(model, mesh=data_parallel)


def is_sharded(module: nn.Module) -> bool:
    """Whether every process has to take part in every forward pass of this module."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    # after a pass without gradient the parameters of an FSDPModule may be whole for a while
    return any(isinstance(part, FSDPModule) for part in module.modules()) or any(
        isinstance(parameter, DTensor) for parameter in module.parameters()
    )


def is_sharded_state(state: Mapping[str, Any]) -> bool:
    """Whether a state dict holds this process's shards instead of whole tensors."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(value, DTensor) for value in state.values())


def reshard(module: nn.Module) -> None:
    """Give the parameters of a sharded module the form that its optimizer knows.

    A forward pass without gradient (a sanity check, a validation) may leave them unsharded, as other tensors.
    """
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def original_class(module: nn.Module) -> type:
    """The class of a module before `fully_shard` gave it another one."""
    from torch.distributed.fsdp import FSDPModule

    found = type(module)
    return found.__mro__[2] if issubclass(found, FSDPModule) else found


@contextmanager
def gathered(module: nn.Module) -> Iterator[dict[str, Any]]:
    """While the block runs, parts of a sharded model outside its decoder layers may be called directly, as `generate` does
    with the vision tower. Yields what `generate` has to be told then; for an unsharded model, nothing.
    """
    if not is_sharded(module):
        yield {}
        return
    model: Any = find_hf_model(module)
    model.unshard()
    try:
        # one process may be done with its answers before another, but every forward pass needs all of them
        yield {"synced_gpus": dist.get_world_size() > 1}
    finally:
        model.reshard()


def all_ranks(flag: bool, device: torch.device) -> bool:
    """Whether a flag is set in every process."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    value = torch.tensor([int(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return bool(value.item())


def full_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """All weights on the CPU, gathered where they are sharded (then every process must call; rank 0 gets them)."""
    if not is_sharded(module):
        return {name: value.detach().cpu() for name, value in module.state_dict().items()}
    reshard(module)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(module, options=options)
    return state
