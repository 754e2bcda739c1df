"""Checkpoints of `PrivacyEditModule`: they hold the trained parameters only, so each load has to be checked.

Lightning loads them with `strict=False`, which accepts any file: one of another layer, of a LoRA, or of another module loads
nothing, and the base model would then be evaluated as if it were edited.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_neuralgate.errors import ResumeError
from lightning_neuralgate.hf.distributed import is_sharded_state
from lightning_neuralgate.hf.identity import ModelIdentity

EDIT_KEY = "neuralgate_edit"
"""Key of a checkpoint with the base model's checksum and the names of the trained parameters."""
_AVERAGED_KEY = "current_model_state"
"""Key at which Lightning's `WeightAveraging` puts the current weights; the averaged ones are then in `state_dict`."""
_STATES = ("state_dict", _AVERAGED_KEY)


def describe_edit(module: nn.Module, base: ModelIdentity | None = None) -> dict[str, Any]:
    """Return what a checkpoint has to match. With sharded weights every process has to call this.

    Args:
        module: the module.
        base: identity of the unedited model, where the trained weights are a part of it.
    """
    base = base or ModelIdentity.of(module)
    return {"architecture": base.architecture, "base": base.checksum, "trained": sorted(_trained(module))}


def keep_trained(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Remove frozen parameters from a checkpoint.

    A sharded checkpoint (`ModelParallelStrategy(save_distributed_checkpoint=True)`) keeps all parameters, since it can only
    be loaded completely.
    """
    trained = _trained(module)
    for key in _STATES:
        if key in checkpoint and not is_sharded_state(checkpoint[key]):
            checkpoint[key] = {name: value for name, value in checkpoint[key].items() if name in trained}


def check_edit(module: nn.Module, checkpoint: dict[str, Any], base: ModelIdentity | None = None) -> None:
    """Check that a checkpoint holds what a module trains, for the same base model; see `describe_edit`.

    Raises:
        ResumeError: it is of another layer, of other parameters (a LoRA or full weights), of another base model or of another
            kind of module.
    """
    trained, saved = _trained(module), checkpoint.get(EDIT_KEY)
    if saved is None:  # of an earlier version, or of another module
        names = set(checkpoint.get("state_dict", trained))
        if names not in (trained, set(module.state_dict())):
            raise ResumeError(
                f"the checkpoint is not one of this edit: it holds {_excerpt(names)}, and this PrivacyEditModule trains "
                f"{_excerpt(trained)}; name a checkpoint that was saved with the same layers and lora_rank"
            )
        return
    if set(saved["trained"]) != trained:
        raise ResumeError(
            f"the checkpoint is of another edit: there {_excerpt(set(saved['trained']))} trained, here {_excerpt(trained)} "
            "does; use the layers and the lora_rank of the checkpoint"
        )
    found = describe_edit(module, base)
    if differing := [name for name in ("architecture", "base") if saved[name] != found[name]]:
        values = "; ".join(f"{name}: {saved[name]} there, {found[name]} here" for name in differing)
        raise ResumeError(
            f"the checkpoint is an edit of another base model ({values}); load the model that the edit was started from"
        )


def complete_averages(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Add the frozen parameters again where `WeightAveraging` loads them, which it does with `strict=True`."""
    if _AVERAGED_KEY in checkpoint:
        frozen = module.state_dict()
        for key in _STATES:
            checkpoint[key] = {**frozen, **checkpoint[key]}


def _trained(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def _excerpt(names: set[str]) -> str:
    first = sorted(names)[:2]
    return (", ".join(first) + (f" and {len(names) - 2} more" if len(names) > 2 else "")) or "no parameters"
