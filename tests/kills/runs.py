"""Kill both stages on the command line at random moments and restart them until they finish.

    python -m tests.kills.runs FOLDER KILLS SEED

Prints JSON: for each stage the number of kills and of runs, and the files that differ from those of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lightning_neuralgate.cli import main
from tests.helpers.tiny_llava import save_tiny_llava


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the command line of each stage, without --out."""
    common = ["--model.name", str(folder / "model"), "--data.folder", str(folder / "data")]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    locator = ["--locator.layers", "[0,1]", "--locator.max_steps", "12"]
    editor = "--editor.layers [1] --editor.lr 0.01 --editor.max_new_tokens 2 --trainer.max_epochs 4 --keep_every 0"
    gate = ["--gate", str(folder / "gate"), "--measure_every", "6", "--pairs_per_batch", "2", *editor.split()]
    return {"locate": ["locate", *common, *quiet, *locator], "edit": ["edit", *common, *quiet, *gate]}


def start(command: list[str], out: Path) -> int:
    """Run a command in a child process and return its id."""
    child = os.fork()  # all imports are done already, so a kill hits the work and not the start-up of Python
    if child:
        return child
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if "NEURALGATE_TEST_LOUD" not in os.environ:
        os.dup2(null, 2)
    status = 99
    try:
        status = main([*command, "--out", str(out)])
    finally:
        os._exit(status)


def exit_code(child: int) -> int | None:
    """Return the exit code of a child; None if it is still running."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def kill_until_finished(command: list[str], out: Path, longest: float, rng: random.Random) -> int:
    """Restart a command until it finishes; return how often it was killed."""
    kills = 0
    while True:
        child, until = start(command, out), time.monotonic() + rng.uniform(0, longest)
        while (status := exit_code(child)) is None and time.monotonic() < until:
            time.sleep(0.002)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
        elif status:
            raise SystemExit(f"{command[0]} failed with exit code {status} after {kills} kills")
        else:
            return kills


def contents(folder: Path) -> dict[str, str]:
    """Return the checksums of all files, including hidden ones."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


_OUTPUTS = {"locate": "gate", "edit": "edited"}
"""Stage -> folder of the uninterrupted run, where the next stage reads it."""


def run_with_kills(folder: Path, stages: dict[str, list[str]], kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill each stage at least `kills` times and compare its files with those of an uninterrupted run."""
    results: dict[str, Any] = {}
    for stage, command in stages.items():
        uninterrupted = folder / _OUTPUTS.get(stage, stage)
        started_at = time.monotonic()
        child = start(command, uninterrupted)
        while (status := exit_code(child)) is None:
            time.sleep(0.002)
        assert status == 0, stage
        longest, expected = time.monotonic() - started_at, contents(uninterrupted)
        result = results[stage] = {"seconds": round(longest, 2), "kills": 0, "runs": 0, "different": []}
        while result["kills"] < kills:
            out = folder / "killed" / f"{stage}-{result['runs']}"
            result["kills"] += kill_until_finished(command, out, longest, rng)
            result["runs"] += 1
            found = contents(out)
            names = {name for name in {**found, **expected} if found.get(name) != expected.get(name)}
            leftovers = {path.name for path in out.parent.iterdir() if path != out}
            result["different"] += sorted(names | leftovers)
            shutil.rmtree(out)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, min_kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    save_tiny_llava(root / "model")
    sizes = "--edit_records 2 --test_records 1 --edit_pairs 2 --test_pairs 1"
    assert main(["render", "--out", str(root / "data"), "--seed", "3", *sizes.split()]) == 0
    print(json.dumps(run_with_kills(root, commands(root), min_kills, random.Random(seed))))
