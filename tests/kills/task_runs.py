"""Kill benchmark runs on the command line at random moments and restart them until they finish.

    python -m tests.kills.task_runs FOLDER KILLS SEED

Prints JSON: the number of kills and of runs, and the files that differ from those of an uninterrupted run.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch

from tests.helpers.tiny_llava import save_tiny_llava
from tests.kills.runs import run_with_kills
from tests.tasks.runs import write_data


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the command lines of a greedy and a sampled run, without --out."""
    data = folder / "data"
    sources = {
        "pope": data / "pope",
        "pope_images": data / "pope" / "val2014",
        "mme": data / "mme",
        "scienceqa": data / "scienceqa",
        "mllmguard": data / "mllmguard",
    }
    words = ["eval", "--tasks", "pope,mme,scienceqa,mllmguard", "--model.name", str(folder / "model")]
    words += [word for name, path in sources.items() for word in (f"--sources.{name}", str(path))]
    words += ["--max_new_tokens", "12", "--batch_size", "1", "--trainer.accelerator", "cpu"]
    words += ["--trainer.enable_progress_bar", "false", "--cache", "false"]
    return {"greedy": words, "sampled": [*words, "--sample", "true"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, min_kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    save_tiny_llava(root / "model")
    write_data(root / "data")
    print(json.dumps(run_with_kills(root, commands(root), min_kills, random.Random(seed))))
