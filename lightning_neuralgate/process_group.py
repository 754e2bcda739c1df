"""The end of torch's process group in a program of several processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
