"""Distributed strategies: shard a Hugging Face model with FSDP2, gather its weights, refuse unsupported strategies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.quantized import quantized_layers

UNTESTED_STRATEGIES = ("DeepSpeedStrategy", "XLAStrategy", "SingleDeviceXLAStrategy")
"""Class names of the Trainer strategies that no module of this package has been tested with."""


def refuse_strategies(strategy: object, names: Collection[str], user: str) -> None:
    """Refuse strategies by class name, including subclasses, so that their libraries need not be installed.

    Args:
        strategy: the Trainer's strategy.
        names: class names of the refused strategies.
        user: name of the class that refuses them, for the message.

    Raises:
        UnsupportedSetupError: names the strategy, and strategies that work.
    """
    for kind in type(strategy).__mro__:
        if kind.__name__ in names:
            raise UnsupportedSetupError(
                f"{user} has not been tested with {kind.__name__}; use 'ddp', or FSDP2 through ModelParallelStrategy"
            )


def uses_fsdp1(root: nn.Module) -> bool:
    """Whether the model is wrapped in FSDP1, whose parameters are flat shards without rows between passes."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return any(isinstance(part, FullyShardedDataParallel) for part in root.modules())


def has_flat_parameters(root: nn.Module) -> bool:
    """Whether FSDP1 has replaced the model's parameters by flat ones (`use_orig_params=False`)."""
    from torch.distributed.fsdp import FlatParameter

    return any(isinstance(parameter, FlatParameter) for parameter in root.parameters())


def first_rows(root: nn.Module, wanted: Sequence[tuple[nn.Parameter, int]]) -> list[torch.Tensor]:
    """Return the first rows of parameters, on the CPU, gathered if they are sharded (then every process has to call this).

    Under FSDP1 one unit is gathered at a time.

    Args:
        root: the module that holds the parameters; under FSDP1 it must contain the outermost unit.
        wanted: parameters, each with the number of rows to return.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    found: dict[int, torch.Tensor] = {}
    for unit in root.modules():  # outermost first: FSDP1 treats the first unit that is used as its root
        if isinstance(unit, FullyShardedDataParallel):
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
                in_unit = {id(p) for part in _unit_modules(unit) for p in part.parameters(recurse=False)}
                found.update({id(p): p.detach()[:rows].cpu().clone() for p, rows in wanted if id(p) in in_unit})
    for parameter, rows in wanted:
        if id(parameter) not in found:
            sample: Any = parameter.detach()[:rows]
            found[id(parameter)] = (sample.full_tensor() if hasattr(sample, "full_tensor") else sample).cpu()
    return [found[id(parameter)] for parameter, _ in wanted]


def _unit_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of an FSDP1 unit, without those of nested units."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    yield module
    for child in module.children():
        if not isinstance(child, FullyShardedDataParallel):
            yield from _unit_modules(child)


def shard(module: nn.Module, mesh: Any) -> None:
    """Shard a model over the data-parallel part of a device mesh, layer by layer, in place.

    For `configure_model` under `ModelParallelStrategy`. A model that is sharded already is left as it is.

    Raises:
        UnsupportedSetupError: the model is quantized.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    model = find_hf_model(module)
    if isinstance(model, FSDPModule):
        return
    if quantized_layers(model):
        raise UnsupportedSetupError(
            "the weights of a quantized model cannot be sharded (ModelParallelStrategy): use one device or DDP, or load the "
            "model in bfloat16"
        )
    data_parallel = mesh["data_parallel"]
    for layer in find_decoder(model).layers:
        fully_shard(layer, mesh=data_parallel)
    fully_shard(model, mesh=data_parallel)


def is_sharded(module: nn.Module) -> bool:
    """Whether the module is sharded, so that every process has to take part in each of its forward passes."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    # after a forward pass without gradient the parameters of an FSDPModule may stay unsharded for a while
    return any(isinstance(part, FSDPModule) for part in module.modules()) or any(
        isinstance(parameter, DTensor) for parameter in module.parameters()
    )


def is_sharded_state(state: Mapping[str, Any]) -> bool:
    """Whether a state dict contains this process's shards instead of full tensors."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(value, DTensor) for value in state.values())


def reshard(module: nn.Module) -> None:
    """Reshard a module, so that its parameters are the tensors that its optimizer has.

    A forward pass without gradient (a sanity check, a validation) may leave them unsharded, as other tensors.
    """
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def original_class(module: nn.Module) -> type:
    """Return the class of a module before `fully_shard` replaced it by a subclass."""
    from torch.distributed.fsdp import FSDPModule

    found = type(module)
    return found.__mro__[2] if issubclass(found, FSDPModule) else found


@contextmanager
def unsharded_for_generate(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Unshard what `generate` calls directly, such as the vision tower; the decoder layers stay sharded.

    Does nothing for a model that is not sharded.

    Yields:
        Keyword arguments that `generate` needs in addition.
    """
    if not is_sharded(module):
        yield {}
        return
    model: Any = find_hf_model(module)
    model.unshard()
    try:
        # a process may finish its answers before the others, but every forward pass needs all processes
        yield {"synced_gpus": dist.get_world_size() > 1}
    finally:
        model.reshard()


def all_ranks(flag: bool, device: torch.device) -> bool:
    """Return whether a flag is set in every process. Every process has to call this."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    value = torch.tensor([int(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return bool(value.item())


def full_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return all weights on the CPU; if they are sharded, every process has to call this, and rank 0 gets them."""
    if not is_sharded(module):
        return {name: value.detach().cpu() for name, value in module.state_dict().items()}
    reshard(module)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(module, options=options)
    return state
