"""Resumable training: checkpoints at regular intervals, and a restart that ends in the same weights."""

from __future__ import annotations

import hashlib
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
from lightning_neuralgate.runtime.files import atomic_write, sync, sync_entry
from lightning_neuralgate.runtime.run_folder import RUN_NAME, has_progress, run_folder
from lightning_neuralgate.runtime.versions import library_versions

_PREFIX, _TEMPORARY, _KEPT = "step-", ".draft", 2
_TRAINER_SETTINGS = (
    "world_size",
    "precision",
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
)
"""Attributes of the Trainer that the result depends on."""


class ProgressCheckpoint(Checkpoint):  # a Checkpoint runs after all other callbacks
    """Keep the two latest checkpoints of a training in a folder: `step-NUMBER-CHECKSUM.ckpt`, written atomically.

    Where the latest one is damaged later on, the checksum in its name shows it, and the other one is used.

    Args:
        folder: where to write the checkpoint.
        every_seconds: minimum time between two checkpoints; 0 for one after every optimizer step.
    """

    def __init__(self, folder: Path, every_seconds: float = 120.0) -> None:
        super().__init__()
        self.folder, self.every_seconds = folder, every_seconds
        self._saved_at = time.monotonic()
        self._step = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at, self._step = time.monotonic(), trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # not after the last batch but at the end of its epoch: resumed from there, Lightning would repeat the epoch
        if not trainer.is_last_batch:
            self._save_if_due(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not after the last epoch: resumed from there, Lightning would skip the hooks at the end of training
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not is_last:
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        if trainer.global_step == self._step:  # checkpoints do not contain accumulated gradients
            return
        self._step = trainer.global_step
        if trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.every_seconds):
            name = f"{_PREFIX}{trainer.global_step:09d}"
            temporary = self.folder / f"{name}.ckpt{_TEMPORARY}"
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                sync(temporary)
                os.replace(temporary, self.folder / f"{name}-{_checksum(temporary)}.ckpt")
                sync_entry(self.folder)
                for file in _checkpoints(self.folder)[:-_KEPT]:
                    _remove(file)
            trainer.strategy.barrier()
            self._saved_at = time.monotonic()


def fit_resumably(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LightningDataModule,
    folder: Path,
    settings: Mapping[str, Any],
    every_seconds: float = 120.0,
) -> None:
    """Run `trainer.fit` and keep its progress in a folder, so that the same call resumes after the process was killed.

    Call `remove_progress` when the result is saved. On the same number of devices the result is bit-identical to that of an
    uninterrupted run, provided that the hardware computes deterministically and that the module and its data depend on seed
    and step only, as those of `PrivacyPairDataModule` do.

    If the training is bounded by `max_steps`, it runs without checkpoints: resumed at the end of an epoch, Lightning would
    lose count of the steps.

    Args:
        trainer: the Trainer.
        module: the module to train.
        datamodule: its data.
        folder: where to keep the progress; one folder per run.
        settings: further settings that the result depends on, as JSON can store them. Library versions, settings of the
            Trainer, the module's hyperparameters and the datamodule's `identity`, if it has one, are added.
        every_seconds: minimum time between two checkpoints; 0 for one after every optimizer step.

    Raises:
        ResumeError: the folder contains the progress of a run with other settings, or of a run that is not over yet, or no
            checkpoint in it is readable; or a hyperparameter is not a plain value.
    """
    if trainer.max_steps != -1:
        rank_zero_warn("a run with max_steps cannot be resumed, so no progress is kept; bound the run by max_epochs")
        trainer.fit(module, datamodule=datamodule)
        return
    for name, value in module.hparams.items():
        _check_plain(name, value)
    all_settings = {
        **settings,
        **library_versions(),
        **{name: getattr(trainer, name) for name in _TRAINER_SETTINGS},
        "module": dict(module.hparams),
        "data": getattr(datamodule, "identity", {}),
    }
    with run_folder(folder, trainer.is_global_zero):
        check_same_run(folder, all_settings, write=trainer.is_global_zero)
        if trainer.is_global_zero:
            for temporary in folder.glob(f"*{_TEMPORARY}"):
                _remove(temporary)
        checkpoint = _latest_readable(folder)
        trainer.callbacks.append(ProgressCheckpoint(folder, every_seconds))  # type: ignore[attr-defined]
        # checkpoints contain tensors and plain values only, so loading them never runs code
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)


def check_same_run(folder: Path, settings: Mapping[str, Any], write: bool = True) -> None:
    """Check that the progress in a folder belongs to a run with these settings; if there is none yet, write them down.

    Args:
        folder: the folder with the progress of a run.
        settings: settings of the current run.
        write: whether to write the settings to a new folder.

    Raises:
        ResumeError: names the settings that differ.
    """
    settings = json.loads(json.dumps(settings, default=lambda value: getattr(value, "__qualname__", str(value))))
    file = folder / RUN_NAME
    if (
        not has_progress(folder) or not file.is_file()
    ):  # settings alone, as of a run that was refused, bind no other run
        if _checkpoints(folder):
            raise ResumeError(
                f"{folder} contains checkpoints of an unknown run ({RUN_NAME} is missing); delete the folder to start anew"
            )
        if write:
            with atomic_write(file) as temporary:
                temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    try:
        saved = dict(json.loads(file.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, ValueError, TypeError) as error:
        raise ResumeError(f"{file} cannot be read ({error}); delete {folder} to start anew") from error
    saved, settings = _flat(saved), _flat(settings)
    if names := [name for name in {**saved, **settings} if saved.get(name) != settings.get(name)]:
        differing = "; ".join(f"{name}: {saved.get(name)!r} there, {settings.get(name)!r} now" for name in names)
        raise ResumeError(
            f"{folder} contains the progress of a run with other settings ({differing}); finish that run with its settings, "
            "or delete the folder to start anew"
        )


def _check_plain(name: str, value: Any) -> None:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception as error:
        raise ResumeError(
            f"hyperparameter '{name}' is {value!r}, which a checkpoint cannot restore without running code; make it a plain "
            "value, or exclude it from save_hyperparameters"
        ) from error


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": v for key, v in _flat(value).items()} if isinstance(value, dict) else {name: value}
    return flat


def _checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*.ckpt"))


def _latest_readable(folder: Path) -> str | None:
    """Return the latest checkpoint that is as it was written; None if there are no checkpoints.

    Raises:
        ResumeError: there are checkpoints, but none can be read.
    """
    problems = []
    for file in reversed(_checkpoints(folder)):
        try:
            if not file.stem.endswith(f"-{_checksum(file)}"):
                raise ValueError("its content is not what was written")
            if file.is_file():
                torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds for what is no checkpoint
            problems.append(f"{file.name}: {str(error).splitlines()[0] if str(error) else error!r}")
            continue
        if problems:
            rank_zero_warn(f"{folder}: damaged checkpoint, resuming from the one before ({'; '.join(problems)})")
        return str(file)
    if problems:
        raise ResumeError(
            f"no checkpoint in {folder} can be read ({'; '.join(problems)}); delete the folder to start anew"
        )
    return None


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]:
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
