"""Kill rendering, both stages, evaluation and attacks on the command line at random moments; restart them until they finish.

    python -m tests.kills.runs FOLDER KILLS SEED STAGE...

Stages before those named are run without kills.

Prints JSON: for each stage the number of kills and of runs, and the files that differ from those of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_neuralgate.cli import main
from tests.helpers.tiny_llava import save_tiny_llava

SIZES = ["--edit_records", "2", "--test_records", "1", "--edit_pairs", "2", "--test_pairs", "1"]


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the command line of each stage, without --out."""
    common = ["--model.name", str(folder / "model"), "--data.folder", str(folder / "data")]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    locator = ["--locator.layers", "[0,1]", "--locator.max_steps", "12"]
    editor = "--editor.layers [1] --editor.lr 0.01 --editor.max_new_tokens 2 --trainer.max_epochs 4 --keep_every 0"
    gate = ["--gate", str(folder / "gate"), "--measure_every", "6", "--pairs_per_batch", "2", *editor.split()]
    answers = ["--max_new_tokens", "4", "--batch_size", "2", "--cache", "false"]
    attacks = "prefill_3,crop_medium,sampled_16,rounded_int4,relearned_benign_10,truth_rank"
    models = [
        "--model",
        str(folder / "edited"),
        "--beside",
        str(folder / "model"),
        "--data.folder",
        str(folder / "data"),
    ]
    return {
        "render": ["render", "--seed", "3", *SIZES],
        "render over another": ["render", "--seed", "3", *SIZES],
        "locate": ["locate", *common, *quiet, *locator],
        "edit": ["edit", *common, *quiet, *gate],
        "eval": ["eval", *common, *quiet, *answers],
        "attack": ["attack", *models, *quiet, *answers[2:], "--attacks", attacks, "--secrets", "4"],
    }


def prepare(stage: str, folder: Path, out: Path) -> None:
    """Write what is in the output folder before a stage starts: for some, the output of another run."""
    if stage == "render over another":
        shutil.copytree(folder / "other-data", out)


def start(command: list[str], out: Path | None, largest_file: int | None = None) -> int:
    """Run a command in a child process, if wanted with a limit on the size of files, and return its id."""
    child = os.fork()  # all imports are done already, so a kill hits the work and not the start-up of Python
    if child:
        return child
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if "NEURALGATE_TEST_LOUD" not in os.environ:
        os.dup2(null, 2)
    status = 99
    try:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        status = main([*command, *(() if out is None else ("--out", str(out)))])
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """Wait for a child's exit code."""
    while (status := exit_code(child)) is None:
        time.sleep(0.002)
    return status


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


OUTPUTS = {"render": "data", "locate": "gate", "edit": "edited"}
"""Stage -> folder of the uninterrupted run, where the next stage reads it."""


def run_uninterrupted(stage: str, command: list[str], folder: Path) -> tuple[dict[str, str], float]:
    """Run a stage to its end; return the checksums of its files, and its seconds."""
    out, started_at = folder / OUTPUTS.get(stage, stage), time.monotonic()
    prepare(stage, folder, out)
    assert wait(start(command, out)) == 0, stage
    return contents(out), time.monotonic() - started_at


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Return the names of files that are not the same in both."""
    return sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))


def run_with_kills(
    folder: Path, stages: dict[str, list[str]], kills: int, rng: random.Random, only: Collection[str] = ()
) -> dict[str, Any]:
    """Kill each stage, or only some, at least `kills` times and compare its files with those of an uninterrupted run."""
    results: dict[str, Any] = {}
    for stage, command in stages.items():
        expected, longest = run_uninterrupted(stage, command, folder)
        if only and stage not in only:
            continue
        result = results[stage] = {"seconds": round(longest, 2), "kills": 0, "runs": 0, "different": []}
        while result["kills"] < kills:
            out = folder / "killed" / f"{stage}-{result['runs']}"
            prepare(stage, folder, out)
            result["kills"] += kill_until_finished(command, out, longest, rng)
            result["runs"] += 1
            leftovers = {path.name for path in out.parent.iterdir() if path != out}
            result["different"] += [*differences(contents(out), expected), *sorted(leftovers)]
            shutil.rmtree(out)
    return results


def write_inputs(folder: Path) -> None:
    """Write the model, and another dataset."""
    save_tiny_llava(folder / "model")
    assert main(["render", "--out", str(folder / "other-data"), "--seed", "4", *SIZES]) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, min_kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    write_inputs(root)
    print(json.dumps(run_with_kills(root, commands(root), min_kills, random.Random(seed), sys.argv[4:])))
