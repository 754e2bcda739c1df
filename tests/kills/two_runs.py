"""Start each command twice in one output folder, the second at ten moments of the first.

    python -m tests.kills.two_runs FOLDER STAGE...

Stages before those named are run alone.

Prints JSON: for each stage the exit codes of both runs at each offset, and the files that differ from those of one run alone.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from tests.kills.runs import commands, contents, differences, prepare, run_uninterrupted, start, wait, write_inputs


def run_twice(folder: Path, stages: dict[str, list[str]], only: Collection[str], offsets: int = 10) -> dict[str, Any]:
    """Return exit codes and different files for each of some stages."""
    results: dict[str, Any] = {}
    for stage, command in stages.items():
        expected, seconds = run_uninterrupted(stage, command, folder)
        if stage not in only:
            continue
        result = results[stage] = {"codes": [], "different": []}
        for number in range(offsets):
            out = folder / "twice" / f"{stage}-{number}"
            prepare(stage, folder, out)
            first = start(command, out)
            time.sleep(seconds * number / offsets)
            second = start(command, out)
            result["codes"].append([wait(first), wait(second)])
            leftovers = {path.name for path in out.parent.iterdir() if path != out}
            result["different"] += [*differences(contents(out), expected), *sorted(leftovers)]
            shutil.rmtree(out)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    write_inputs(root)
    print(json.dumps(run_twice(root, commands(root), sys.argv[2:])))
