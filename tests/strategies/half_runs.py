"""Edit a model in bfloat16 under each strategy.

    python -m tests.strategies.half_runs STRATEGY,... FOLDER

writes the edited model, the checkpoint after training and the number of surviving changes to FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.runtime.process import process_group_closed
from tests.helpers.tiny_llava import tiny_llava, tiny_splits
from tests.helpers.training import QUIET, datamodule, random_gate


def run(strategy: str, folder: Path) -> None:
    """Train two epochs on two processes."""
    strategies: dict[str, Any] = {
        "ddp": "ddp",
        "fsdp": ModelParallelStrategy(2, 1, save_distributed_checkpoint=False),
    }
    model = tiny_llava().bfloat16()
    gate = NeuralGateCallback(random_gate(model), "all", tau=0.5)
    trainer = Trainer(
        **QUIET, devices=2, strategy=strategies[strategy], max_epochs=2, limit_val_batches=0, callbacks=[gate]
    )
    pictures = folder / f"pictures-{strategy}-{trainer.global_rank}"
    pictures.mkdir()
    editor = PrivacyEditModule(model, [1], lr=1e-3)
    trainer.fit(editor, datamodule(tiny_splits(pictures), pairs_per_batch=2))
    rounding = editor.rounding()
    assert rounding is not None
    trainer.save_checkpoint(folder / f"{strategy}.ckpt")
    editor.save_pretrained(folder / strategy)
    if trainer.is_global_zero:
        (folder / f"{strategy}.json").write_text(json.dumps(rounding._asdict()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group_closed():
        for name in sys.argv[1].split(","):
            run(name, Path(sys.argv[2]))
