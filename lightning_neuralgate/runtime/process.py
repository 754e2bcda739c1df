"""Remarks of other libraries that are expected here and that nobody can act on."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def silence_known_noise() -> None:
    """Keep a terminal readable."""
    import transformers

    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        r".*module\(s\) in eval mode at the start of training.*",
        ".*does not have many workers.*",
        ".*You passed in a `val_dataloader` but have no `validation_step`.*",
        ".*configure_optimizers` returned `None`.*",
        ".*`is_gradient_checkpointing` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    transformers.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@contextmanager
def process_group_closed() -> Iterator[None]:
    """Destroy torch's process group, if there is one, when the block ends, also after an exception.

    Lightning destroys the group itself for NCCL only. Threads of gloo that are still there when the interpreter shuts down
    abort the process after its work is done ("terminate called without an active exception", pytorch/pytorch#190489), and an
    `atexit` handler runs too late to prevent it. Put the whole program into the block, so that whatever holds the group
    (a Trainer, a sharded model) is gone by then.

    After an exception no barrier is waited for, since other processes may never reach it.

    Example:
        >>> with process_group_closed():
        ...     pass  # Trainer(strategy="ddp").fit(...)
    """
    try:
        yield
    except BaseException:
        _destroy(wait=False)
        raise
    _destroy(wait=True)


def _destroy(wait: bool) -> None:
    dist = sys.modules.get("torch.distributed")  # a program that never imported it has no group
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return
    if wait:
        dist.barrier()
    dist.destroy_process_group()
