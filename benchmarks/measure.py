"""Shared by the benchmarks: command-line options, models, and output of results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.geometries import GEOMETRIES, load_geometry
from benchmarks.random_models import Sizes
from lightning_neuralgate.runtime.cost import Cost
from lightning_neuralgate.runtime.files import atomic_write

DTYPES = ("float32", "bfloat16", "float16")


def is_tower(name: str) -> bool:
    """Whether a parameter of this name belongs to the vision tower."""
    return "vision" in name or "visual" in name


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="smol")
    parser.add_argument("--depth", type=int, help="lowest layers to keep of a random geometry (default: all)")
    parser.add_argument("--shrink", type=int, default=1, help="divisor of the widths of a random geometry")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 for random geometries, otherwise float32")
    parser.add_argument(
        "--model", default="smol-llava", help="another model: a folder or a Hugging Face Hub repository"
    )
    parser.add_argument("--threads", type=int, help="threads of this process (default: all cores)")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser


def parse_and_load(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Any, Any]:
    """Parse the command line, and load model and processor."""
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = args.dtype and getattr(torch, args.dtype)
    model, processor = load_geometry(args.geometry, args.model, Sizes(args.depth, args.shrink), dtype)
    args.dtype = str(model.dtype).removeprefix("torch.")
    return args, model.requires_grad_(False), processor


def report_comparison(
    args: argparse.Namespace, plain: Cost, fast: Cost, agree: bool, floor_seconds: float, **more: Any
) -> None:
    """Report the cost of both sides, whether their results agree, and the options.

    Args:
        args: options of the command line.
        plain: cost of the reference implementation.
        fast: cost of the fast implementation.
        agree: whether the results are the same.
        floor_seconds: seconds that the necessary matrix products would take at `matmul_rate`.
        more: further figures.
    """
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
    report(results, args.json)


def report(results: Mapping[str, Any], file: Path | None) -> None:
    """Print results as a table, and write them as JSON if a file is given."""
    print("| | |\n| --- | ---: |")
    for name, value in results.items():
        print(f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |")
    if file is not None:
        with atomic_write(file) as draft:
            draft.write_text(json.dumps(dict(results), indent=2) + "\n", encoding="utf-8")
