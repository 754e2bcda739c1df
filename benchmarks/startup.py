"""Start-up time of the package and the command line, compared with `import lightning`.

    python -m benchmarks.startup --json FILE

Each statement runs in new Python processes. The statements alternate, so that background load affects all of them; the first
round, which may read from disk and compile, is discarded. Printed are medians of the seconds, and of the ratios to `import
lightning` in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import report

_HELP = "import sys; from lightning_neuralgate.cli import main; sys.exit(main({!r}))"
STATEMENTS = {
    "import lightning": "import lightning",
    "import lightning_neuralgate": "import lightning_neuralgate",
    "all public names": "from lightning_neuralgate import *",
    "neuralgate --help": _HELP.format(["--help"]),
    "neuralgate locate --help": _HELP.format(["locate", "--help"]),
}
"""Timed statements; the first is the baseline of the ratios."""


def seconds(statement: str) -> float:
    """Seconds to run a statement in a new process.

    Raises:
        subprocess.CalledProcessError: the statement failed.
    """
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for warm_up in [True, *[False] * args.repeats]:
        for name, statement in STATEMENTS.items():
            elapsed = seconds(statement)
            if not warm_up:
                times[name].append(elapsed)
    base, *others = times
    results = {f"seconds, {name}": statistics.median(values) for name, values in times.items()}
    for name in others:
        ratios = [value / base_value for value, base_value in zip(times[name], times[base], strict=True)]
        results[f"ratio, {name}"] = statistics.median(ratios)
    report({**results, "repeats": args.repeats}, args.json)


if __name__ == "__main__":
    main()
