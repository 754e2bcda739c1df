from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(*words: str, world: int = 1, **environment: str) -> str:
    """Run `python WORDS` in the project's root, under torchrun for several processes, and return its output.

    Raises:
        AssertionError: the exit code is not 0.
    """
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(world)] if world > 1 else []
    completed = subprocess.run(
        [sys.executable, *torchrun, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        cwd=ROOT,
        check=False,
        timeout=580,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return completed.stdout
