"""Starts scripts and modules in processes of their own, as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(*words: str, world: int = 1, **environment: str) -> str:
    """Run `python WORDS` from the project's root, under torchrun if there are several processes, and see it end well.

    Returns:
        What it printed.
    """
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(world)] if world > 1 else []
    done = subprocess.run(
        [sys.executable, *torchrun, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        cwd=ROOT,
        check=False,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
