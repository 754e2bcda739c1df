"""How a process of several ends well."""

from __future__ import annotations

import atexit
from functools import cache

import torch.distributed as dist


def _destroy() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@cache
def destroy_process_group_at_exit() -> None:
    """See to it that torch's process group, if there is one then, is destroyed when Python exits.

    Threads of gloo that outlive the interpreter abort the process after its work is done ("terminate called without an
    active exception", pytorch/pytorch#190489); Lightning destroys the group itself for NCCL only.
    """
    atexit.register(_destroy)
