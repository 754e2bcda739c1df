"""How long it takes to start, beside `import lightning`.

    python -m benchmarks.startup --json FILE

Each statement runs in Python processes of its own, in turn with the others, so that what slows the machine down meets all of
them alike; the first round, which may have to read files from disk and to compile them, is not counted. Printed are medians
of seconds, and of ratios to `import lightning` in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.side_by_side import tell

_HELP = "import sys; from lightning_neuralgate.cli import main; sys.exit(main({!r}))"
STATEMENTS = {
    "import lightning": "import lightning",
    "import lightning_neuralgate": "import lightning_neuralgate",
    "all public names": "from lightning_neuralgate import *",
    "neuralgate --help": _HELP.format(["--help"]),
    "neuralgate locate --help": _HELP.format(["locate", "--help"]),
}
"""What is timed; the first is what the others are compared with."""


def seconds(statement: str) -> float:
    """What a fresh process takes to run a statement and to end.

    Raises:
        subprocess.CalledProcessError: the statement failed.
    """
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--json", type=Path)
    args = made.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for counted in [False, *[True] * args.repeats]:
        for name, statement in STATEMENTS.items():
            took = seconds(statement)
            if counted:
                taken[name].append(took)
    base, *others = taken
    results = {f"seconds, {name}": statistics.median(each) for name, each in taken.items()}
    for name in others:
        ratios = [took / of_base for took, of_base in zip(taken[name], taken[base], strict=True)]
        results[f"ratio, {name}"] = statistics.median(ratios)
    tell({**results, "repeats": args.repeats}, args.json)


if __name__ == "__main__":
    main()
