"""Stages on the command line, killed at random moments and started again until they end.

    python -m tests.kills.runs FOLDER KILLS SEED

Prints JSON: for each stage how often it was killed, in how many runs, and what differs from a run that nobody killed.
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
    """Stage -> its command line, without --out."""
    common = ["--model.name", str(folder / "model"), "--data.folder", str(folder / "data")]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    located = ["--locator.layers", "[0,1]", "--locator.max_steps", "12"]
    editor = "--editor.layers [1] --editor.lr 0.01 --editor.max_new_tokens 2 --trainer.max_epochs 4 --keep_every 0"
    gated = ["--gate", str(folder / "gate"), "--measure_every", "6", "--pairs_per_batch", "2", *editor.split()]
    return {"locate": ["locate", *common, *quiet, *located], "edit": ["edit", *common, *quiet, *gated]}


def started(command: list[str], out: Path) -> int:
    """The process id of a child that runs a command."""
    child = os.fork()  # with everything imported already, so that a kill meets the work and not the start of Python
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


def ended(child: int) -> int | None:
    """How a child ended; None if it still runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def killed_until_it_ends(command: list[str], out: Path, longest: float, rng: random.Random) -> int:
    """Start a command until it ends by itself. Returns how often it was killed."""
    kills = 0
    while True:
        child, until = started(command, out), time.monotonic() + rng.uniform(0, longest)
        while (status := ended(child)) is None and time.monotonic() < until:
            time.sleep(0.002)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
        elif status:
            raise SystemExit(f"{command[0]} ended with status {status} after {kills} kills")
        else:
            return kills


def contents(folder: Path) -> dict[str, str]:
    """Checksums of all files, hidden ones too."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


_LEFT = {"locate": "gate", "edit": "edited"}
"""Stage -> folder of the run that nobody killed, where another stage looks for it."""


def try_out(folder: Path, stages: dict[str, list[str]], kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill each stage at least `kills` times."""
    results: dict[str, Any] = {}
    for stage, command in stages.items():
        whole = folder / _LEFT.get(stage, stage)
        start = time.monotonic()
        child = started(command, whole)
        while (status := ended(child)) is None:
            time.sleep(0.002)
        assert status == 0, stage
        longest, expected = time.monotonic() - start, contents(whole)
        told = results[stage] = {"seconds": round(longest, 2), "kills": 0, "runs": 0, "different": []}
        while told["kills"] < kills:
            out = folder / "broken" / f"{stage}-{told['runs']}"
            told["kills"] += killed_until_it_ends(command, out, longest, rng)
            told["runs"] += 1
            found = contents(out)
            names = {name for name in {**found, **expected} if found.get(name) != expected.get(name)}
            left = {path.name for path in out.parent.iterdir() if path != out}
            told["different"] += sorted(names | left)
            shutil.rmtree(out)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, wanted, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    save_tiny_llava(place / "model")
    sizes = "--edit_records 2 --test_records 1 --edit_pairs 2 --test_pairs 1"
    assert main(["render", "--out", str(place / "data"), "--seed", "3", *sizes.split()]) == 0
    print(json.dumps(try_out(place, commands(place), wanted, random.Random(seed))))
