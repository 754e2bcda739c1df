"""A user's LightningModule to which the callback is added, and a short fit."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.records import PrivacyRecord, RecordSplits
from lightning_neuralgate.edit.editor import mean_by_role
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.hf.identity import ModelIdentity
from tests.helpers.tiny_llava import tiny_processor

SUBJECTS = ("passport", "receipt")


def random_gate(model: nn.Module, layers: tuple[int, ...] = (1,), subjects: tuple[str, ...] = SUBJECTS) -> NeuralGate:
    identity = ModelIdentity.of(model)
    generator = torch.Generator().manual_seed(3)
    rates = {s: {layer: torch.rand(identity.hidden_size, generator=generator) for layer in layers} for s in subjects}
    return NeuralGate(rates, identity, dict.fromkeys(subjects, 4))


def loss_of(network: nn.Module, batch: dict[str, Any]) -> Tensor:
    means = mean_by_role(batch_nll(network, batch), batch["role"])
    return means["sensitive"] + 1.25 * means["benign"]


class UserModule(LightningModule):
    """A LightningModule without any gate code, trained by plain gradient descent."""

    def __init__(self, network: nn.Module, layers: tuple[int, ...] = (1,), lr: float = 0.1) -> None:
        super().__init__()
        self.network, self.lr = network.requires_grad_(False), lr
        for layer in layers:
            find_decoder(network).output_projection(layer).requires_grad_(True)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return loss_of(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)


class Gradients(Callback):
    """Record the batches and the gradients of each step."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.grads: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.grads.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})


QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip
"""Settings of a Trainer that writes and prints nothing."""


def train(module: LightningModule, data: Any, *callbacks: Callback, **options: Any) -> Trainer:
    trainer = Trainer(**{**QUIET, "max_steps": 1, "limit_val_batches": 0, **options}, callbacks=list(callbacks))
    trainer.fit(module, data)
    return trainer


def datamodule(splits: RecordSplits, **options: Any) -> PrivacyPairDataModule:
    return PrivacyPairDataModule(splits, tiny_processor(), **{"pairs_per_batch": 8, "shuffle": False, **options})


def enable_checkpointing(model: Any, reentrant: bool) -> None:
    """Enable activation checkpointing, under the name of the installed version of transformers."""
    options = {"use_reentrant": reentrant}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.enable_input_require_grads()


def disable_checkpointing(model: Any) -> None:
    """Undo `enable_checkpointing`."""
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()
    model.disable_input_require_grads()


def without_targets(splits: RecordSplits) -> RecordSplits:
    """Remove the benign targets of the edit records."""

    def without(record: PrivacyRecord) -> PrivacyRecord:
        pairs = tuple(pair.model_copy(update={"benign_target": None}) for pair in record.pairs)
        return record.model_copy(update={"pairs": pairs})

    return splits._replace(edit=[without(record) for record in splits.edit])
