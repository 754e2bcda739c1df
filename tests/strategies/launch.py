"""Starts a module of these tests on several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(module: str, world: int, *arguments: str, torchrun: bool = True) -> None:
    """Run `python -m MODULE ARGUMENTS`, under torchrun if asked, and see it end well."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(world)] if torchrun and world > 1 else []
    command = [sys.executable, *launcher, "-m", module, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=400
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
