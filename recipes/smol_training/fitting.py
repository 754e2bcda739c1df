"""Run a stage of a training: checkpoints about once a minute, resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_neuralgate.demo.experiment import has_bfloat16


def steps_done(folder: Path) -> int:
    """Optimizer steps in the checkpoint of a stage, summed over its optimizers; 0 without a checkpoint."""
    last = folder / "last.ckpt"
    return int(torch.load(last, weights_only=False, map_location="cpu")["global_step"]) if last.is_file() else 0


def fit(
    module: L.LightningModule, data: DataLoader, folder: Path, steps: int, clip: float | None = None, every: int = 40
) -> None:
    """Train until `steps` (summed over optimizers), resuming from the last checkpoint if there is one."""
    checkpointing = ModelCheckpoint(
        dirpath=folder, save_last=True, every_n_train_steps=every, save_top_k=0, enable_version_counter=False
    )
    trainer = L.Trainer(
        max_steps=steps, precision="bf16-mixed" if has_bfloat16() else "32-true", callbacks=[checkpointing],
        gradient_clip_val=clip, log_every_n_steps=10, logger=CSVLogger(folder, name="", version="log"),
    )  # fmt: skip
    last = folder / "last.ckpt"
    trainer.fit(module, data, ckpt_path=str(last) if last.is_file() else None, weights_only=False)
    trainer.save_checkpoint(folder / "done.ckpt")


def load_stage(module: L.LightningModule, folder: Path, **options: Any) -> bool:
    """Load a finished stage into its module; return whether there is one."""
    done = folder / "done.ckpt"
    if not done.is_file():
        return False
    module.load_state_dict(torch.load(done, weights_only=False, map_location="cpu")["state_dict"], **options)
    return True
