"""Read damaged files and print, per reader, how many were refused and how many were read: `python -m tests.hostile 4000`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.hostile.damage import random_damage
from tests.hostile.readers import READERS, refusal


def main(count: int) -> None:
    """Print the table of `docs/reliability.md`; any error but this package's ends the run."""
    warnings.simplefilter("ignore")
    print("| reader | files | refused | read |\n| --- | --- | --- | --- |")
    total = 0
    for name, reader in READERS.items():
        seeds, refused = reader.seeds(), 0
        for number in range(count):
            content = random_damage(seeds, Random(f"{name}/{number}"))
            with TemporaryDirectory() as folder:
                refused += refusal(reader, Path(folder), content) is not None
        total += count
        print(f"| {name} | {count:,} | {refused:,} | {count - refused:,} |", flush=True)
    print(f"| all | {total:,} | | |")


if __name__ == "__main__":
    main(int(sys.argv[1]))
