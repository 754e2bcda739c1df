from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.positions import Positions
from lightning_neuralgate.gate.row_rules import ConflictRows
from lightning_neuralgate.gate.subjects import GatedBatch
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.gloo import in_two_processes
from tests.helpers.reference import plain_gated_gradient, relative_error
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import QUIET, Gradients, UserModule, datamodule, random_gate, train


def gradients_by_role(model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weight gradient of the sensitive and of the benign rows."""
    projection: Any = find_decoder(model).output_projection(1)
    projection.weight.requires_grad_(True)
    found = {}
    for role in ("sensitive", "benign"):
        mask = [torch.full((32,), role == other) for other in batch["role"]]
        everywhere = torch.ones_like(batch["subject_mask"])
        found[role] = plain_gated_gradient(model, batch, [projection], everywhere, [mask])[0]
    return found


def test_rows_in_conflict_are_closed_for_sensitive_rows(splits: RecordSplits) -> None:
    model, spy, rows = tiny_llava(), Gradients(), ConflictRows(decay=0.5)
    callback = NeuralGateCallback(random_gate(model), "all", rows=rows)
    data = datamodule(splits, pairs_per_batch=4)
    # the learning rate is 0, so that all steps have the weights of the first
    train(UserModule(model, lr=0.0), data, callback, spy, max_steps=3, max_epochs=2)
    parts = [gradients_by_role(model, batch) for batch in spy.batches]
    means = {role: torch.zeros(32, 48) for role in parts[0]}
    for step, (part, found) in enumerate(zip(parts, spy.grads, strict=True)):
        conflict = (means["sensitive"] * means["benign"]).sum(1) < 0
        assert bool(step) == bool(conflict.any()), "open in the first step"
        sensitive = part["sensitive"].clone()
        sensitive[conflict] = 0
        (gradient,) = found.values()
        assert relative_error(gradient, sensitive + part["benign"]) < 1e-4
        means = {role: 0.5 * mean + 0.5 * part[role] for role, mean in means.items()}
    assert not conflict.all()


def test_the_averages_resume(splits: RecordSplits, tmp_path: Path) -> None:
    """Training in two parts ends with the weights of training in one."""

    def run(rows: ConflictRows, **options: Any) -> Tensor:
        module = UserModule(tiny_llava())
        callback = NeuralGateCallback(random_gate(tiny_llava()), "all", rows=rows)
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
        settings = {**QUIET, "enable_checkpointing": True, "max_steps": 4, "limit_val_batches": 0}
        trainer = Trainer(**settings, callbacks=[callback, saving])
        trainer.fit(module, datamodule(splits, pairs_per_batch=2), **options)
        return find_decoder(module.network).output_projection(1).weight.detach()  # type: ignore[no-any-return, union-attr]

    rows = ConflictRows()
    whole = run(rows)
    resumed = ConflictRows()
    assert torch.equal(run(resumed, ckpt_path=tmp_path / "step=2.ckpt", weights_only=True), whole)
    (expected,), (found,) = rows.state_dict()["means"].values(), resumed.state_dict()["means"].values()
    assert all(map(torch.equal, found, expected))


def closed_rows(rows: slice) -> Tensor:
    """Return which rows are closed after a backward pass over some of six random samples and a step."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(6, 4, size, generator=generator)[rows] for size in (5, 8))
    roles = ["sensitive", "benign", "sensitive", "benign", "retention", "sensitive"][rows]
    batch = GatedBatch(Positions(), ("",) * len(roles), 4, {"role": roles})
    rule = ConflictRows()
    rule.observer("layer", batch)(x, grad)
    rule.before_step()
    values = rule.values(1, "layer", batch, 8, x.device)
    assert values[[role != "sensitive" for role in roles]].all()
    return ~values[roles.index("sensitive")]


def of_rank(rank: int) -> Tensor:
    return closed_rows(slice(0, 2) if rank == 0 else slice(2, 6))


def test_processes_close_the_rows_that_one_process_closes(tmp_path: Path) -> None:
    expected = closed_rows(slice(0, 6))
    assert 0 < expected.sum() < 8
    assert not torch.equal(of_rank(0), expected), "alone, a process would close others"
    assert all(torch.equal(found, expected) for found in in_two_processes(of_rank, tmp_path))


def test_batches_without_roles_are_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    rows = ConflictRows(roles=lambda batch: ["sensitive"])
    with pytest.raises(
        UnsupportedSetupError, match=r"found \['sensitive'\] for 16 rows: pass ConflictRows\(roles=function\)"
    ):
        train(UserModule(model), datamodule(splits), NeuralGateCallback(random_gate(model), "all", rows=rows))
    with pytest.raises(ValueError, match="decay"):
        ConflictRows(decay=1.0)
