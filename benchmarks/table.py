"""The table of docs/performance.md, from what the benchmarks have written.

python -m benchmarks.table runs/perf/*.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

KEYS = ("seconds_plain", "seconds_fast", "ratio", "agree", "peak_memory_ratio", "floor_share")


def row(name: str, told: dict[str, Any]) -> str:
    """One benchmark's figures as a row of the table."""
    plain, fast, ratio, agree, memory, floor = (told[key] for key in KEYS)
    figures = [
        f"{plain:.1f} s",
        f"{fast:.1f} s",
        f"{ratio:.2f}",
        "yes" if agree else "no",
        f"{memory:.2f}",
        f"{floor:.2f}",
    ]
    return f"| {' | '.join([name, told['geometry'], str(told['threads']), *figures])} |"


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "files", type=Path, nargs="+", help="written with --json; the benchmark's name is the file's first word"
    )
    print("| benchmark | geometry | threads | plain | fast | ratio | agree | memory | floor |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    for file in made.parse_args().files:
        print(row(file.stem.split("-")[0], json.loads(file.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
