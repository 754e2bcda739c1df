"""Print the table of docs/performance.md from the JSON files of the benchmarks.

python -m benchmarks.table runs/perf/*.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

KEYS = ("seconds_plain", "seconds_fast", "ratio", "agree", "peak_memory_ratio", "floor_share")


def row(name: str, results: dict[str, Any]) -> str:
    """Format the results of a benchmark as a row of the table."""
    plain, fast, ratio, agree, memory, floor = (results[key] for key in KEYS)
    figures = [
        f"{plain:.1f} s",
        f"{fast:.1f} s",
        f"{ratio:.2f}",
        "yes" if agree else "no",
        f"{memory:.2f}",
        f"{floor:.2f}",
    ]
    return f"| {' | '.join([name, results['geometry'], str(results['threads']), *figures])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        help="files written with --json, named after the benchmark, such as locate-2.json",
    )
    print("| benchmark | geometry | threads | plain | fast | ratio | agree | memory | lower bound |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    for file in parser.parse_args().files:
        print(row(file.stem.split("-")[0], json.loads(file.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
