"""What all benchmarks here share: time, peak memory, the arithmetic floor, and how results are printed and written."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.geometries import load_geometry
from lightning_neuralgate.runtime.files import atomic_write

_PEAK_RESET = Path("/proc/self/clear_refs")
"""Linux alone can forget a process's peak; elsewhere the peak is that of the whole process."""


@dataclass
class Cost:
    """What something took: seconds, and bytes at its peak, beyond what was there before."""

    seconds: float = 0.0
    peak_memory: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Of one after the other."""
        return Cost(self.seconds + other.seconds, max(self.peak_memory, other.peak_memory))


@contextmanager
def measured() -> Iterator[Cost]:
    """Time a block and find its peak memory, of the device or of this process."""
    cost = Cost()
    finish()
    forget_peak()
    before = peak_memory()
    start = time.perf_counter()
    yield cost
    finish()
    cost.seconds, cost.peak_memory = time.perf_counter() - start, max(1, peak_memory() - before)


def finish() -> None:
    """Wait for what a device still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget_peak() -> None:
    """Let the peak start anew: loading a model takes more memory than training one of its layers."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif _PEAK_RESET.exists():
        # what the allocator keeps for later would count as being there
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        _PEAK_RESET.write_text("5")


def peak_memory() -> int:
    """Bytes since `forget_peak`, of the device or of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if _PEAK_RESET.exists():
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 1536, repeats: int = 5) -> float:
    """Floating point operations a second of a square matrix product; the best of some."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    one @ other
    seconds = []
    for _ in range(repeats):
        with measured() as cost:
            one @ other
        seconds.append(cost.seconds)
    return 2 * size**3 / min(seconds)


def parser(description: str) -> argparse.ArgumentParser:
    """With the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--geometry", choices=("smol", "llava-1.5"), default="smol")
    made.add_argument("--model", default="smol-llava", help="a folder or a hub repository instead")
    made.add_argument("--threads", type=int, help="of this process; all cores when left out")
    made.add_argument("--json", type=Path)
    return made


def opened(made: argparse.ArgumentParser) -> tuple[argparse.Namespace, Any, Any]:
    """The options of the command line, and the model and processor that they ask for."""
    args = made.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model, processor = load_geometry(args.geometry, args.model)
    return args, model.requires_grad_(False), processor


def compare(args: argparse.Namespace, plain: Cost, fast: Cost, agree: bool, floor_seconds: float, **more: Any) -> None:
    """Print and write what both sides cost, whether they agree, and the options."""
    results = {
        "seconds_plain": plain.seconds,
        "seconds_fast": fast.seconds,
        "ratio": plain.seconds / fast.seconds,
        "agree": agree,
        "peak_memory_ratio": fast.peak_memory / plain.peak_memory,
        "floor_share": floor_seconds / fast.seconds,
        **more,
        **{name: value for name, value in vars(args).items() if name != "json"},
        "threads": torch.get_num_threads(),
    }
    tell(results, args.json)


def tell(results: Mapping[str, Any], file: Path | None) -> None:
    """Print results as a table, and write them as JSON if there is a file."""
    print("| | |\n| --- | ---: |")
    for name, value in results.items():
        print(f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |")
    if file is not None:
        with atomic_write(file) as draft:
            draft.write_text(json.dumps(dict(results), indent=2) + "\n", encoding="utf-8")
