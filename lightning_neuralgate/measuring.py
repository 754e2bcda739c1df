"""Measuring a model before, every few optimizer steps of, and after a training, without changing the training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from typing_extensions import override

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.hf.distributed import is_flattened


class MeasuringCallback(Callback):
    """Calls `measure` before, every few optimizer steps of, and after a training, and logs what it returns.

    What is measured goes to all loggers of the Trainer, over its number of optimizer steps, and into
    `trainer.callback_metrics`, which other callbacks can watch. The training itself stays what it would be, to the bit.

    Args:
        every_n_steps: optimizer steps between two measurements; 0: only before and after the training.

    Attributes:
        history: (optimizer steps, name -> value) of each measurement.
    """

    def __init__(self, every_n_steps: int) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.history: list[tuple[int, dict[str, float]]] = []
        self._measured_at: int | None = None

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Name -> value; every process calls this, and returns the same."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # a checkpoint's state comes after this
            self._measured_at, self.history = None, []

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"measured_at": self._measured_at, "history": self.history}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._measured_at, self.history = state_dict["measured_at"], state_dict["history"]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_flattened(trainer.strategy.model or pl_module):
            raise UnsupportedSetupError(
                f"{type(self).__name__} cannot generate under FSDP1; use FSDP2 through ModelParallelStrategy, or 'ddp'"
            )
        if self._measured_at is None:
            self._measure(trainer, pl_module)
        else:
            _tell(trainer, self.history[-1][1])

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_steps
        # a manual optimization may take several steps in a batch
        if every and trainer.global_step // every > (self._measured_at or 0) // every:
            self._measure(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._measured_at != trainer.global_step:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with _evaluating(pl_module), isolate_rng(), trainer.precision_plugin.forward_context():
            values = self.measure(trainer, pl_module)
        self._measured_at = trainer.global_step
        self.history.append((trainer.global_step, values))
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        _tell(trainer, values)


def shows_progress(trainer: Trainer) -> bool:
    """Whether this process has a progress bar to add to."""
    return trainer.is_global_zero and trainer.progress_bar_callback is not None


def _tell(trainer: Trainer, values: Mapping[str, float]) -> None:
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and afterwards each of its parts back into the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
