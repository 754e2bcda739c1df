"""Evaluation during a training: the schedule (`PeriodicEvaluationCallback`), and refusal rates on held-out queries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from tqdm.auto import tqdm
from typing_extensions import override

from lightning_neuralgate.data.prompts import prompts_loader
from lightning_neuralgate.data.records import PrivacyRecord
from lightning_neuralgate.errors import DataFormatError, UnsupportedSetupError
from lightning_neuralgate.hf.decoder import find_hf_model
from lightning_neuralgate.hf.distributed import uses_fsdp1
from lightning_neuralgate.metrics.functional import RefusalVariant
from lightning_neuralgate.metrics.held_out import HeldOutRates
from lightning_neuralgate.prefix_cache.generate import generate_with_shared_prefix


class PeriodicEvaluationCallback(Callback):
    """Call `measure` before training, every few optimizer steps, and after it, and log its values.

    They go to all loggers of the Trainer, against its number of optimizer steps, and into `trainer.callback_metrics`, which
    other callbacks can monitor. Module modes and random states are restored, so the training is unchanged, bit for bit.

    Args:
        every_n_steps: optimizer steps between two evaluations; 0: only before and after the training.

    Attributes:
        history: (optimizer steps, name -> value) of each evaluation.

    Raises:
        UnsupportedSetupError: at the start of training: FSDP1, under which models cannot generate.
    """

    def __init__(self, every_n_steps: int) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.history: list[tuple[int, dict[str, float]]] = []
        self._measured_at: int | None = None

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Return name -> value; called on every process, with the same result on each."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # before a checkpoint's state is loaded
            self._measured_at, self.history = None, []

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"measured_at": self._measured_at, "history": self.history}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._measured_at, self.history = state_dict["measured_at"], state_dict["history"]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if uses_fsdp1(trainer.strategy.model or pl_module):
            raise UnsupportedSetupError(
                f"{type(self).__name__} cannot generate under FSDP1; use FSDP2 through ModelParallelStrategy, or 'ddp'"
            )
        if self._measured_at is None:
            self._measure(trainer, pl_module)
        else:
            _update_callback_metrics(trainer, self.history[-1][1])

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_steps
        # manual optimization may take several steps per batch
        if every and trainer.global_step // every > (self._measured_at or 0) // every:
            self._measure(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._measured_at != trainer.global_step:
            self._measure(trainer, pl_module)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Call `measure` in eval mode and the Trainer's precision, and restore modes and random states; nothing is logged."""
        with _evaluating(pl_module), isolate_rng(), trainer.precision_plugin.forward_context():
            return self.measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = self.evaluate(trainer, pl_module)
        self._measured_at = trainer.global_step
        self.history.append((trainer.global_step, values))
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        _update_callback_metrics(trainer, values)


def shows_progress(trainer: Trainer) -> bool:
    """Return whether this process shows a progress bar."""
    return trainer.is_global_zero and trainer.progress_bar_callback is not None


def _update_callback_metrics(trainer: Trainer, values: Mapping[str, float]) -> None:
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Set a module to eval mode, and restore the mode of each submodule afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class RefusalMetricsCallback(PeriodicEvaluationCallback):
    """Evaluate held-out queries before training, every few optimizer steps, and after it, and log the rates.

    For each split `held_out/SPLIT/rta_sensitive`, `answer_rate_benign` and `eta`, and with known true values `leak_rate` and
    `benign_accuracy`, are logged as `PeriodicEvaluationCallback` describes. Several processes share the queries; each counts
    once. Answers are greedy.

    Args:
        splits: name -> held-out records, which are not trained on.
        processor: the model's processor.
        every_n_steps: optimizer steps between two evaluations; 0: only before and after the training.
        max_new_tokens: maximum length of an answer.
        batch_size: queries per batch and process.
        limit: maximum number of queries per split.
        variant: the keyword list that decides which answers refuse, see `metrics.functional.is_refusal`.

    Attributes:
        history: (optimizer steps, name -> value) of each evaluation.

    Raises:
        DataFormatError: a split without records.

    Example:
        `Trainer(callbacks=[RefusalMetricsCallback({"test": records}, processor, every_n_steps=50)])`
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[PrivacyRecord]],
        processor: Any,
        every_n_steps: int = 100,
        max_new_tokens: int = 20,
        batch_size: int = 8,
        limit: int | None = None,
        variant: RefusalVariant = "prefix",
    ) -> None:
        super().__init__(every_n_steps)
        if every_n_steps < 0 or max_new_tokens < 1 or batch_size < 1 or (limit is not None and limit < 1):
            raise ValueError(
                "every_n_steps must not be negative; max_new_tokens, batch_size and limit must be at least 1"
            )
        empty = sorted(name for name, records in splits.items() if not records)
        if empty or not splits:
            raise DataFormatError(f"no held-out records{' in ' if empty else ''}{', '.join(empty)}")
        self.splits = {name: list(records) for name, records in splits.items()}
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.limit = limit
        self.rates = HeldOutRates(variant)

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(splits=sorted(self.splits))

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        self.rates.to(pl_module.device)
        return {
            f"held_out/{split}/{name}": value
            for split, records in self.splits.items()
            for name, value in self._rates(trainer, pl_module, split, records).items()
        }

    def _rates(
        self, trainer: Trainer, pl_module: LightningModule, split: str, records: Sequence[PrivacyRecord]
    ) -> dict[str, float]:
        model: Any = find_hf_model(pl_module)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        loader = prompts_loader(
            records, self.processor, self.batch_size, self.limit, trainer.global_rank, trainer.world_size
        )
        self.rates.reset()
        hidden = not shows_progress(trainer)
        for batch in tqdm(loader, desc=f"held out: {split}", leave=False, disable=hidden, unit="batch"):
            answers = generate_with_shared_prefix(model, tokenizer, batch, batch["record_id"], self.max_new_tokens)
            self.rates.update(answers, batch)
        return {name: float(metric.compute()) for name, metric in self.rates.metrics.items()}
