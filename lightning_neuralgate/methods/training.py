"""Methods that train: an objective in the edit module, a few rows of each pair, and callbacks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.edit.lora import merged_lora, remove_lora
from lightning_neuralgate.hf.decoder import find_hf_model
from lightning_neuralgate.hf.forward import batch_predictions, row_kl, row_nll
from lightning_neuralgate.hf.identity import model_checksum
from lightning_neuralgate.methods.base import Method, Report, WeightEdit, set_weights
from lightning_neuralgate.methods.data import KIND, Kind, MethodBatches, MethodData

Predictions = tuple[Tensor, Tensor]
"""Logits of the columns with targets, (B, K, V), and their labels, (B, K)."""


class ObjectiveModule(PrivacyEditModule):
    """An edit with another loss than the two-term one: a subclass implements `objective`.

    Args:
        method: the method, whose settings the loss uses.
        model, layers, settings: as in `PrivacyEditModule`.
    """

    def __init__(self, method: Any, model: nn.Module, layers: Sequence[int], **settings: Any) -> None:
        super().__init__(model, layers, **settings)
        self.method = method

    @abstractmethod
    def objective(self, batch: dict[str, Any], predict: Callable[[], Predictions]) -> dict[str, Tensor]:
        """Return the weighted terms of the loss, by name; the loss is their sum.

        Args:
            batch: a batch of `MethodBatches`.
            predict: runs the batch with the current weights, with gradient.
        """

    @override
    def loss(self, batch: dict[str, Any]) -> Tensor:
        terms = self.objective(batch, self._losses.prepare(batch))
        total = torch.stack(list(terms.values())).sum()
        logged = {f"train/{name}": value.detach() for name, value in terms.items()}
        self.log_dict({**logged, "train/loss": total.detach()}, batch_size=len(batch["role"]))
        return total

    def unedited_logits(self, predict: Callable[[], Predictions]) -> Tensor:
        """Return the logits of the unedited model for the same batch, (B, K, V), without gradient."""
        with torch.no_grad(), self.unedited.scaled(0.0):
            return predict()[0]


def rows_of(batch: dict[str, Any], *kinds: Kind | str) -> list[int]:
    """Return the rows of some kinds in a batch of `MethodBatches`, in their order."""
    return [row for row, kind in enumerate(batch[KIND]) if kind in kinds]


def mean_nll(predictions: Predictions, rows: Sequence[int]) -> Tensor:
    """Return the mean NLL per target token over some rows, a scalar; 0 without rows."""
    return row_nll(*predictions)[list(rows)].mean() if rows else predictions[0].new_zeros(())


def mean_kl(predictions: Predictions, reference: Tensor, rows: Sequence[int]) -> Tensor:
    """Return the mean of KL(p0 || p) per target token over some rows, a scalar; 0 without rows."""
    if not rows:
        return predictions[0].new_zeros(())
    chosen = list(rows)
    return row_kl(predictions[0][chosen], reference[chosen], predictions[1][chosen]).mean()


@dataclass(frozen=True)
class TrainedMethod(Method):
    """A method that trains weights on the pairs. A subclass gives the module, the kinds of rows, and callbacks.

    Attributes:
        kinds: rows of each pair in a batch.
        lr: learning rate of Adam.
        epochs: passes over the pairs.
        pairs_per_batch: query pairs in a batch.
        retention_per_batch: ordinary questions in a batch.
        stop_loss: the training ends after an epoch whose mean loss is below; None: it does not.
    """

    kinds: ClassVar[Sequence[Kind]] = ("refusal", "answer")

    lr: float = 3e-4
    epochs: int = 4
    pairs_per_batch: int = 3
    retention_per_batch: int = 1
    stop_loss: float | None = None

    @abstractmethod
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        """Return the module to train; what it trains has `requires_grad`."""

    def callbacks(self, model: nn.Module, data: MethodData) -> list[Callback]:
        """Return callbacks of the training, made before the module."""
        return []

    def finished(self, base: dict[str, Tensor], trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the edited weights, given the unedited and the trained ones; by default the trained ones."""
        return trained

    def report(self, module: PrivacyEditModule) -> Report:
        """Return further figures of the fit."""
        return {}

    @override
    def fit(self, model: nn.Module, data: MethodData) -> WeightEdit:
        model = find_hf_model(model).eval()
        checksum = model_checksum(model)
        device = next(model.parameters()).device
        batches = MethodBatches(data, self.kinds, self.pairs_per_batch, self.retention_per_batch)
        callbacks = self.callbacks(model, data)
        seed_everything(data.seed, verbose=False)
        loss = LastLoss(self.stop_loss)
        try:
            module = self.module(model, data)
            with kept_weights(model) as base:
                trainer = data.make_trainer(max_epochs=self.epochs, callbacks=[*callbacks, loss])
                trainer.fit(module, datamodule=batches)
                model.to(device)  # the Trainer moves it to the CPU
                trained = trained_weights(model)
                report = {"steps": float(trainer.global_step), "last_loss": loss.mean, **self.report(module)}
        finally:
            remove_lora(model)
            model.requires_grad_(False)
        weights = self.finished(base, trained)
        return WeightEdit(method=self.name, settings=self.settings(), report=report, weights=weights, base=checksum)


@contextmanager
def kept_weights(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Restore the weights that train, without those of a LoRA, at the end of the block; yields copies of them on the CPU."""
    kept = {
        name: parameter.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    }
    try:
        yield kept
    finally:
        set_weights(model, kept)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the weights that train, on the CPU; of a LoRA the merged weights, under the names from before it."""
    found = {
        name: parameter.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    }
    wrapped = [path for path, part in model.named_modules() if hasattr(part, "lora_A")]
    if wrapped:
        merged = merged_lora(model, model.state_dict())
        found |= {f"{path}.weight": merged[f"{path}.weight"].detach().cpu() for path in wrapped}
    return found


class LastLoss(Callback):
    """The mean loss of the batches of the last epoch, in `mean`.

    Args:
        stop: end the training after an epoch whose mean loss is below.
    """

    def __init__(self, stop: float | None = None) -> None:
        self.stop, self.mean = stop, float("nan")
        self._losses: list[Tensor] = []

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = []

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._losses:
            self.mean = float(torch.stack(self._losses).mean())
        if self.stop is not None and self.mean < self.stop:
            trainer.should_stop = True


def mean_gradients(
    model: nn.Module, data: MethodData, kinds: Sequence[Kind], parameters: Sequence[nn.Parameter], retention: int = 0
) -> list[Tensor]:
    """Return the gradients of the mean NLL over all pairs' rows of some kinds, and over retention rows drawn for them.

    Args:
        model: the model; it is not changed.
        data: the training data.
        kinds: kinds of rows.
        parameters: what to differentiate by; gets `requires_grad`.
        retention: retention rows per batch of one pair.
    """
    for parameter in parameters:
        parameter.requires_grad_(True)
    device = next(model.parameters()).device
    batches = MethodBatches(data, kinds, 1, retention)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    count = 0
    for batch in batches.pairs_dataloader():
        moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        loss = row_nll(*batch_predictions(model, moved)).mean()
        for mean, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            mean += gradient
        count += 1
    return [gradient / count for gradient in total]
