"""Join the figures of `gpu_check.sh` with the card's name to one file, `gpu.json`, and print them.

python -m benchmarks.gpu_summary OUT
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import report

FIGURES = {
    "locate": ("seconds_plain", "seconds_fast", "ratio", "agree", "peak_memory_ratio"),
    "edit": ("seconds_plain", "seconds_fast", "ratio", "agree", "peak_memory_ratio"),
    "memory": ("weights_gb", "locate_gb", "edit_gb"),
}


def summarize(folder: Path) -> dict[str, Any]:
    """Return the figures of each benchmark in a folder, named `benchmark.figure`, after the card and torch's version."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    figures: dict[str, Any] = {"card": card, "torch": torch.__version__}
    for name, keys in FIGURES.items():
        results = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        figures |= {f"{name}.{key}": results[key] for key in keys}
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the JSON files of the benchmarks")
    args = parser.parse_args(argv)
    report(summarize(args.folder), args.folder / "gpu.json")


if __name__ == "__main__":
    main()
