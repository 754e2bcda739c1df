"""An edit with KL retention and a dial on two processes.

python -m tests.strategies.shares STRATEGY,... FOLDER

writes to FOLDER the weights of the full edit and of half of it, and the dial of each process.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.records import RetentionItem
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.evaluation.dial import DialCallback
from lightning_neuralgate.hf.distributed import full_state_dict
from lightning_neuralgate.runtime.process import process_group_closed
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.strategies.jobs import LAYER, WEIGHT, trainer_of, uneven, with_made_up_answers


def run(strategy: str, folder: Path) -> None:
    """Edit, dial, and save the weights."""
    trainer = trainer_of(strategy, max_epochs=1, limit_val_batches=0)
    pictures = folder / f"{strategy}-pictures-{trainer.global_rank}"
    pictures.mkdir()
    splits = uneven(pictures)
    retention = [RetentionItem(query="What is shown here?", image=splits.test[0].image, target="It is red")]
    module = PrivacyEditModule(
        with_made_up_answers(tiny_llava()), [LAYER], lr=1e-2, eps=1e-3, retention_loss="kl", retention_weight=1.0
    )
    dialling = DialCallback(splits.test, tiny_processor(), max_leak=1.0)
    trainer.callbacks.append(dialling)
    trainer.fit(module, datamodule=PrivacyPairDataModule(splits, tiny_processor(), retention, pairs_per_batch=2))
    weights = {}
    for name, scale in (("full", 1.0), ("half", 0.5), ("again", 1.0)):
        with module.unedited.scaled(scale):
            state = full_state_dict(module.model)
            if trainer.global_rank == 0:
                weights[name] = state[WEIGHT].clone()
    if trainer.global_rank == 0:
        save_file(weights, folder / f"{strategy}.safetensors")
    assert dialling.dial is not None
    frontier = [asdict(point) for point in dialling.dial.frontier]
    (folder / f"{strategy}-{trainer.global_rank}.json").write_text(json.dumps(frontier))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group_closed():
        for name in sys.argv[1].split(","):
            run(name, Path(sys.argv[2]))
