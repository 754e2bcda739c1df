from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _run(rank: int, function: Callable[[int], Any], folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(function(rank), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def in_two_processes(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """Return what `function(rank)` returns in each of two processes: tensors, numbers, strings and containers of them.

    Args:
        function: a function at the top level of a module, so that the processes can import it.
        folder: an empty folder.
    """
    mp.start_processes(_run, (function, str(folder)), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
