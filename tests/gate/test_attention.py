"""Attention's output projection instead of the MLP's: the same rows, the same gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.columns import ColumnGate
from lightning_neuralgate.gate.positions import scope_positions
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.identity import ModelIdentity
from tests.helpers.reference import plain_gated_gradient, relative_error
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import Gradients, datamodule, random_gate, train


def test_an_edit_of_attention_is_gated(splits: RecordSplits) -> None:
    model, spy = tiny_llava(), Gradients()
    gate = random_gate(model)
    editor = PrivacyEditModule(model, [1], projection="attention")
    callback = NeuralGateCallback(gate, "all", tau=0.5, projection="attention")
    train(editor, datamodule(splits, pairs_per_batch=3), callback, spy)
    assert editor._losses.fast_path.verified
    ((name, found),) = spy.grads[0].items()
    assert name == "model.model.language_model.layers.1.self_attn.o_proj.weight"

    fresh = tiny_llava()
    projection: Any = find_decoder(fresh, "attention").output_projection(1)
    projection.weight.requires_grad_(True)
    batch = spy.batches[0]
    masks = [gate.mask(subject, 1, 0.5) for subject in batch["subject"]]
    positions = scope_positions("all", batch["subject_mask"])
    (expected,) = plain_gated_gradient(fresh, batch, [projection], positions, [masks])
    assert relative_error(found, expected) < 1e-5
    closed = ~torch.stack(masks).any(0)
    assert torch.equal(find_decoder(model, "attention").output_projection(1).weight[closed], projection.weight[closed])  # type: ignore[index, union-attr]


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_checkpoints_of_an_attention_edit_resume(splits: RecordSplits, tmp_path: Path, lora_rank: int) -> None:
    def editor() -> PrivacyEditModule:
        return PrivacyEditModule(tiny_llava(), [1], projection="attention", lora_rank=lora_rank)

    trainer = train(editor(), datamodule(splits), max_steps=1)
    trainer.save_checkpoint(tmp_path / "edit.ckpt")
    resumed = editor()
    options = {"ckpt_path": tmp_path / "edit.ckpt", "weights_only": True}
    other = type(trainer)(max_steps=2, logger=False, enable_checkpointing=False, limit_val_batches=0, accelerator="cpu")
    other.fit(resumed, datamodule(splits), **options)
    assert other.global_step == 2


def test_gates_of_the_other_projection_are_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    columns = ColumnGate({1: torch.ones(48)}, ModelIdentity.of(model), queries=4)
    with pytest.raises(ValueError, match="hidden units of the MLP"):
        NeuralGateCallback(random_gate(model), columns=columns, projection="attention")
    with pytest.raises(UnsupportedSetupError, match=r"nothing at .*layers.1.self_attn.o_proj trains"):
        train(
            PrivacyEditModule(model, [1]),
            datamodule(splits),
            NeuralGateCallback(random_gate(model), projection="attention"),
        )
