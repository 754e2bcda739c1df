"""Train in transformers' Trainer with the gate on two processes.

torchrun --nproc-per-node 2 -m tests.strategies.hf_runs FOLDER

writes the trained weight of each process to FOLDER.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lightning_neuralgate.gate.positions import Divergence
from lightning_neuralgate.runtime.process import process_group_closed
from tests.gate.test_loop import hugging_face
from tests.helpers.tiny_llava import tiny_processor
from tests.strategies.runs import micro_batches


def rules(scope: str) -> dict[str, Any]:
    """Return the arguments of the callback."""
    twins = Divergence(twins=lambda inputs: [row ^ 1 for row in range(len(inputs["input_ids"]))])
    return {"scope": twins if scope == "divergence" else scope, "tokenizer": tiny_processor()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    batches = micro_batches(folder / f"data-{rank}")[rank::2]
    with process_group_closed():
        weights = {scope: hugging_face(batches, folder, **rules(scope)) for scope in ("all", "divergence")}
        save_file({scope: weight.contiguous() for scope, weight in weights.items()}, folder / f"{rank}.safetensors")
