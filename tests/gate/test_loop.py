"""The plain loop, transformers' Trainer and Lightning's callback train alike, to the bit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import GateMismatchError, UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.hf_trainer import HFGateCallback
from lightning_neuralgate.gate.loop import gated
from lightning_neuralgate.gate.positions import Divergence
from lightning_neuralgate.gate.row_rules import ConflictRows
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import model_inputs
from tests.gate.test_callback import count_hooks
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import UserModule, datamodule, random_gate, train

STEPS, ACCUMULATED = 4, 2


def weight(model: nn.Module) -> Tensor:
    return find_decoder(model).output_projection(1).weight.detach()  # type: ignore[no-any-return, union-attr]


def loss_of(model: Any, inputs: dict[str, Any]) -> Tensor:
    output = model(**model_inputs(inputs), labels=inputs["labels"])
    return output.loss  # type: ignore[no-any-return]


class OwnLoss(UserModule):
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return loss_of(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adam(self.network)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)


def lightning(splits: RecordSplits, **settings: Any) -> Tensor:
    module = OwnLoss(tiny_llava())
    callback = NeuralGateCallback(random_gate(module.network), **settings)
    data = datamodule(splits, pairs_per_batch=1)
    train(module, data, callback, max_steps=STEPS // ACCUMULATED, accumulate_grad_batches=ACCUMULATED)
    return weight(module.network)


def batches_of(splits: RecordSplits) -> list[dict[str, Any]]:
    return list(datamodule(splits, pairs_per_batch=1).pairs_dataloader())[:STEPS]


def plain(batches: Sequence[dict[str, Any]], accumulated: int = ACCUMULATED, **settings: Any) -> Tensor:
    model = OwnLoss(tiny_llava()).network
    optimizer = adam(model)
    with gated(model, random_gate(model), optimizer, **settings) as gating:
        for number, batch in enumerate(batches, start=1):
            if "tokenizer" not in settings:
                gating.start_batch(batch)
            (loss_of(model, batch) / accumulated).backward()
            if number % accumulated == 0:
                optimizer.step()
                optimizer.zero_grad()
    assert count_hooks(model) == 0
    return weight(model)


class BatchesTrainer(Trainer):
    """Trains on given batches, in their order, with the model's own loss."""

    def get_train_dataloader(self) -> Any:
        return self.train_dataset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return loss_of(model, inputs)


def hugging_face(batches: Sequence[dict[str, Any]], folder: Path, **settings: Any) -> Tensor:
    model = OwnLoss(tiny_llava()).network
    keys = {*model_inputs(batches[0]), "labels"}
    arguments = TrainingArguments(
        str(folder), max_steps=len(batches) // ACCUMULATED, gradient_accumulation_steps=ACCUMULATED, max_grad_norm=0.0,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
        ddp_backend="gloo" if "RANK" in os.environ else None,
    )  # fmt: skip
    optimizer = adam(model)
    trainer = BatchesTrainer(
        model,
        arguments,
        train_dataset=[{key: batch[key] for key in keys} for batch in batches],  # type: ignore[arg-type]
        callbacks=[HFGateCallback(random_gate(model), **settings)],
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
    )
    trainer.model_accepts_loss_kwargs = False  # divide the loss by the number of accumulated batches
    trainer.train()
    assert count_hooks(model) == 0
    return weight(model)


@pytest.mark.parametrize("settings", [{"scope": "all"}, {"scope": "divergence"}, {"scope": "all", "rows": True}])
def test_a_plain_loop_trains_as_lightning_does(splits: RecordSplits, settings: dict[str, Any]) -> None:
    def rules() -> dict[str, Any]:
        return {**settings, **({"rows": ConflictRows()} if "rows" in settings else {})}

    expected = lightning(splits, **rules())
    assert torch.equal(plain(batches_of(splits), **rules()), expected)
    assert not torch.equal(plain(batches_of(splits), tau=1.0), expected)


@pytest.mark.parametrize(
    "scope", ["all", Divergence(twins=lambda inputs: [row ^ 1 for row in range(len(inputs["input_ids"]))])]
)
def test_transformers_trainer_trains_as_lightning_does(splits: RecordSplits, tmp_path: Path, scope: Any) -> None:
    pytest.importorskip("accelerate")
    settings = {"scope": scope, "tokenizer": tiny_processor()}
    expected = lightning(splits, **settings)
    assert torch.equal(hugging_face(batches_of(splits), tmp_path, **settings), expected)
    assert torch.equal(plain(batches_of(splits), **settings), expected)
    assert torch.equal(lightning(splits, scope=scope), expected)
    assert not torch.equal(expected, weight(tiny_llava()))


def test_setups_that_cannot_be_gated_are_refused(splits: RecordSplits) -> None:
    model = OwnLoss(tiny_llava()).network
    gate, optimizer = random_gate(model), adam(model)
    with pytest.raises(ValueError, match="passes no batch to its callbacks"):
        HFGateCallback(gate)
    with (
        pytest.raises(GateMismatchError, match="located in another model"),
        gated(model, random_gate(tiny_llava(1)), optimizer),
    ):
        pass
    find_decoder(model).output_projection(1).weight.grad = torch.ones(32, 48)  # type: ignore[union-attr]
    with pytest.raises(UnsupportedSetupError, match="forward hook never ran"), gated(model, gate, optimizer):
        optimizer.step()
    assert count_hooks(model) == 0
    optimizer.step()
