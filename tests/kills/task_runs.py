"""A benchmark run on the command line, killed at random moments and started again until it ends.

    python -m tests.kills.task_runs FOLDER KILLS SEED

Prints JSON: how often it was killed, in how many runs, and what differs from a run that nobody killed.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch

from tests.helpers.tiny_llava import save_tiny_llava
from tests.kills.runs import try_out
from tests.tasks.runs import write_data


def commands(folder: Path) -> dict[str, list[str]]:
    """Runs without --out: greedy, with the cache; and sampled, without."""
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
    place, wanted, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    save_tiny_llava(place / "model")
    write_data(place / "data")
    print(json.dumps(try_out(place, commands(place), wanted, random.Random(seed))))
