"""Collect an input covariance and train with `keep` under each strategy.

    python -m tests.strategies.key_runs STRATEGY,... FOLDER

writes the covariance and the trained weights to FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save_file

from lightning_neuralgate.data.prompts import PromptDataModule, ordinary_rows
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.key_collector import KeyCollector
from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.hf.distributed import full_state_dict
from lightning_neuralgate.runtime.process import process_group_closed
from tests.gate.test_key_space import random_keys, trained_model
from tests.helpers.tiny_llava import tiny_llava, tiny_processor, tiny_splits
from tests.helpers.training import QUIET
from tests.strategies.runs import Case, Training, micro_batches, trained_weights, trainer_of

TRAINABLE = ("full", "lora")


def collect(folder: Path, world: int = 1, strategy: str = "one") -> InputCovariance | None:
    """Collect the covariance of nine prompts, which two processes cannot share evenly; None on other ranks than 0."""
    strategies: dict[str, Any] = {"one": "auto", "ddp": "ddp", "fsdp": ModelParallelStrategy(world, 1)}
    trainer = Trainer(**QUIET, devices=world, strategy=strategies[strategy])
    folder = folder / f"pictures-{strategy}-{trainer.global_rank}"
    folder.mkdir()
    rows = ordinary_rows(tiny_splits(folder).edit, (), ["Tell me the colour of a receipt, please, and more."])
    collector = KeyCollector(tiny_llava(), [0, 1])
    trainer.predict(collector, datamodule=PromptDataModule(rows, tiny_processor(), 2), return_predictions=False)
    return collector.covariance if trainer.is_global_zero else None


def run(strategy: str, folder: Path) -> None:
    """Collect, and train full weights and a LoRA."""
    if (covariance := collect(folder, 2, strategy)) is not None:
        covariance.save_pretrained(folder / f"{strategy}-keys")
    for trainable in TRAINABLE:
        callback = NeuralGateCallback(None, keep=random_keys())
        trainer = trainer_of(strategy, Case(1, "32-true", trainable, "subject_last"), callbacks=[callback])
        batches = micro_batches(folder / f"data-{trainer.global_rank}")
        module = Training(trained_model(trainable), batches)
        trainer.fit(module)
        weights = trained_weights(module.network, full_state_dict(module.network))
        if trainer.is_global_zero:
            save_file(weights, folder / f"{strategy}-{trainable}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group_closed():
        for name in sys.argv[1].split(","):
            run(name, Path(sys.argv[2]))
