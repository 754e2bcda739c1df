"""A training that can be killed at any moment: started again, it goes on where it was, and ends in the same weights."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lightning_neuralgate.errors import ResumeError
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.versions import library_versions

RUN_NAME = "run.json"
_PREFIX, _DRAFT = "step-", ".draft"
_DEPENDS_ON = (
    "world_size",
    "precision",
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
)
"""Of the Trainer, what a result depends on."""


class KeepProgress(Checkpoint):  # so that it comes last, when the others have acted
    """Keeps the newest checkpoint of a training in a folder, never half-written.

    Args:
        folder: where to.
        every_seconds: least time between two checkpoints; 0: after every optimizer step.
    """

    def __init__(self, folder: Path, every_seconds: float = 120.0) -> None:
        super().__init__()
        self.folder, self.every_seconds = folder, every_seconds
        self._saved = time.monotonic()
        self._step = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved, self._step = time.monotonic(), trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # the last batch of an epoch is kept with its epoch: Lightning, gone on there twice, would begin the epoch anew
        if not trainer.is_last_batch:
            self._save_if_due(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a training that is over is not gone on with, and what is done at its end would not be done again
        over = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not over:
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        if trainer.global_step == self._step:  # gradients are being accumulated, which no checkpoint holds
            return
        self._step = trainer.global_step
        if trainer.strategy.broadcast(time.monotonic() - self._saved >= self.every_seconds):
            self._save(trainer)
            self._saved = time.monotonic()

    def _save(self, trainer: Trainer) -> None:
        target = self.folder / f"{_PREFIX}{trainer.global_step:09d}.ckpt"
        draft = target.with_name(target.name + _DRAFT)
        trainer.save_checkpoint(draft)
        if trainer.is_global_zero:
            older = [file for file in _checkpoints(self.folder) if file != target]
            os.replace(draft, target)
            for file in older:
                _remove(file)
        trainer.strategy.barrier()


def fit_resumably(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LightningDataModule,
    folder: Path,
    settings: Mapping[str, Any],
    every_seconds: float = 120.0,
) -> None:
    """`trainer.fit`, with its progress kept in a folder, from which the same call goes on after the process was killed.

    The folder is left where it is; remove it with `remove_progress` when the result is safe. On the same number of devices
    the result is that of a run that nobody killed, to the bit, as far as the hardware computes alike twice, and the module
    and its data follow from seed and step (`PrivacyPairDataModule` does).

    Args:
        trainer: the Trainer.
        module: what is trained.
        datamodule: its data.
        folder: where progress is kept; one folder a run.
        settings: what else the result depends on, as JSON can hold it, beside versions, the Trainer's settings, the module's
            hyperparameters, and the datamodule's `identity` if it has one.
        every_seconds: least time between two checkpoints; 0: after every optimizer step.

    A run that is bounded by `max_steps` is not kept: Lightning, gone on with at the end of an epoch, would lose count.

    Raises:
        ResumeError: the folder holds the progress of a run with other settings; a hyperparameter is no plain value.
    """
    if trainer.max_steps != -1:
        rank_zero_warn("progress is not kept under max_steps; bound the run by max_epochs, and it can be gone on with")
        trainer.fit(module, datamodule=datamodule)
        return
    for name, value in module.hparams.items():
        _check_plain(name, value)
    whole = {
        **settings,
        **library_versions(),
        **{name: getattr(trainer, name) for name in _DEPENDS_ON},
        "module": dict(module.hparams),
        "data": getattr(datamodule, "identity", {}),
    }
    check_same_run(folder, whole, write=trainer.is_global_zero)
    if trainer.is_global_zero:
        for draft in folder.glob(f"*{_DRAFT}"):
            _remove(draft)
    found = _checkpoints(folder)
    trainer.callbacks.append(KeepProgress(folder, every_seconds))  # type: ignore[attr-defined]
    # checkpoints hold tensors and plain values, so nothing in them needs to be run
    trainer.fit(module, datamodule=datamodule, ckpt_path=str(found[-1]) if found else None, weights_only=True)


def remove_progress(folder: Path) -> None:
    """Remove the progress of a run, at once as far as others can see."""
    over = folder.with_name(f".{folder.name}.over")
    shutil.rmtree(over, ignore_errors=True)
    if folder.exists():
        os.replace(folder, over)
        shutil.rmtree(over, ignore_errors=True)


def check_same_run(folder: Path, settings: Mapping[str, Any], write: bool = True) -> None:
    """Say of a folder of progress which run it belongs to, unless it is said already; then it has to be the same.

    Raises:
        ResumeError: naming the settings that differ.
    """
    settings = json.loads(json.dumps(settings, default=lambda value: getattr(value, "__qualname__", str(value))))
    file = folder / RUN_NAME
    if not file.is_file():
        if _checkpoints(folder):
            raise ResumeError(
                f"{folder} holds progress, but not of which run ({RUN_NAME} is missing); delete the folder"
            )
        if write:
            with atomic_write(file) as draft:
                draft.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    try:
        before = dict(json.loads(file.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, ValueError, TypeError) as error:
        raise ResumeError(f"{file} cannot be read ({error}); delete {folder} to start anew") from error
    before, settings = _flat(before), _flat(settings)
    names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if names:
        told = "; ".join(f"{name}: {before.get(name)!r} there, {settings.get(name)!r} now" for name in names)
        raise ResumeError(
            f"{folder} holds the progress of a run with other settings ({told}); start that one again to end it, or delete "
            "the folder to start anew"
        )


def _check_plain(name: str, value: Any) -> None:
    content = io.BytesIO()
    try:
        torch.save(value, content)
        content.seek(0)
        torch.load(content, weights_only=True)
    except Exception as error:
        raise ResumeError(
            f"hyperparameter '{name}' is {value!r}, which no checkpoint gives back without running code; make it a plain "
            "value, or leave it out of save_hyperparameters"
        ) from error


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": v for key, v in _flat(value).items()} if isinstance(value, dict) else {name: value}
    return flat


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*.ckpt"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
