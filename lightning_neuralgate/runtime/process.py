"""Process-wide setup and cleanup: expected warnings of other libraries, and torch's process group."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def silence_expected_warnings() -> None:
    """Silence warnings of Lightning and transformers that are expected here and need no action by the user."""
    import transformers

    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        r".*module\(s\) in eval mode at the start of training.*",
        ".*does not have many workers.*",
        ".*Total length of `CountedBatches` across ranks is zero.*",  # a run whose questions are all answered
        ".*You passed in a `val_dataloader` but have no `validation_step`.*",
        ".*configure_optimizers` returned `None`.*",
        ".*`is_gradient_checkpointing` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    transformers.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@contextmanager
def process_group_closed() -> Iterator[None]:
    """Destroy torch's process group, if there is one, at the end of the block, also after an exception.

    Lightning destroys the group only for NCCL. Gloo threads that still run when the interpreter shuts down abort the process
    after its work is done ("terminate called without an active exception", pytorch/pytorch#190489), and an `atexit` handler
    runs too late to prevent that. Run the whole program in the block, so that the objects that use the group (a Trainer, a
    sharded model) are gone at its end.

    After an exception there is no barrier, since the other processes may never reach it.

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
    dist = sys.modules.get("torch.distributed")  # without the import there is no group
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return
    if wait:
        dist.barrier()
    dist.destroy_process_group()
