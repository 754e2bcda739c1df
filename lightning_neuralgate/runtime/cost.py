"""Time and peak memory of a block."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_PEAK_RESET = Path("/proc/self/clear_refs")
"""Linux only: resets the peak memory of a process. Elsewhere the peak covers the lifetime of the process."""


@dataclass
class Cost:
    """Seconds, and peak memory in bytes above the memory at the start."""

    seconds: float = 0.0
    peak_memory: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Cost of running both one after the other."""
        return Cost(self.seconds + other.seconds, max(self.peak_memory, other.peak_memory))


@contextmanager
def measure() -> Iterator[Cost]:
    """Measure time and peak memory of a block, on the GPU or in this process."""
    cost = Cost()
    synchronize()
    reset_peak_memory()
    before = peak_memory()
    start = time.perf_counter()
    yield cost
    synchronize()
    cost.seconds, cost.peak_memory = time.perf_counter() - start, max(1, peak_memory() - before)


def synchronize() -> None:
    """Wait for the GPU to finish."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak_memory() -> None:
    """Reset the peak: loading a model takes more memory than training one of its layers."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif _PEAK_RESET.exists():
        # return freed memory to the system, or it would hide in the baseline
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        _PEAK_RESET.write_text("5")


def peak_memory() -> int:
    """Peak bytes since `reset_peak_memory`, on the GPU or in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if _PEAK_RESET.exists():
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
