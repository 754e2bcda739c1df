"""Both stages on a GPU: equal results, autocast, fused Adam, attention backends, and no device sync per step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_neuralgate.data.datamodule import locate_rows
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import datamodule, random_gate, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def record_batch(splits: RecordSplits) -> dict[str, Any]:
    return datamodule(splits).collate_training(locate_rows(splits.edit[0]))


def edited_weight(splits: RecordSplits, **options: Any) -> torch.Tensor:
    model = tiny_llava()
    editor = PrivacyEditModule(model, [1], lr=1e-3)
    train(editor, datamodule(splits), NeuralGateCallback(random_gate(model)), max_steps=3, **options)
    weight = find_decoder(model).output_projection(1).weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach().cpu()


def test_locate_equals_the_cpu(splits: RecordSplits) -> None:
    signs = []
    for device, fast in (("cpu", False), ("cuda", False), ("cuda", True)):
        batch = record_batch(splits)
        locator = PrivacyLocatorModule(tiny_llava(), [1], max_steps=10, stop_loss=-1.0, reuse_prefix=fast).to(device)
        vectors, _, _ = locator._learn(on_gpu(batch) if device == "cuda" else batch)
        assert locator._losses.fast_path.verified is fast
        signs.append(vectors[splits.edit[0].record_id][1] < 0)
    assert torch.equal(signs[0], signs[1])
    assert torch.equal(signs[1], signs[2])


def test_edit_equals_the_cpu(splits: RecordSplits) -> None:
    before = find_decoder(tiny_llava()).output_projection(1).weight
    assert isinstance(before, torch.Tensor)
    cpu, gpu = (edited_weight(splits, accelerator=accelerator) for accelerator in ("cpu", "gpu"))
    assert relative_error(gpu - before, cpu - before) < 1e-2
    mixed = edited_weight(splits, accelerator="gpu", precision="bf16-mixed")
    assert mixed.dtype == torch.float32
    assert 0 < relative_error(mixed - before, cpu - before) < 1


def test_rows_closed_by_the_gate_stay_with_fused_adam(splits: RecordSplits) -> None:
    class Fused(PrivacyEditModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2, fused=True)

    model = tiny_llava()
    gate = random_gate(model)
    before = find_decoder(tiny_llava()).output_projection(1).weight
    assert isinstance(before, torch.Tensor)
    train(Fused(model, [1]), datamodule(splits), NeuralGateCallback(gate, "all", 0.5), accelerator="gpu", max_steps=3)
    after = find_decoder(model).output_projection(1).weight
    assert isinstance(after, torch.Tensor)
    changed = (after.cpu() != before).any(1)
    opened = torch.stack([gate.mask(subject, 1, 0.5) for subject in gate.subjects]).any(0)
    assert bool(changed.any())
    assert not bool((changed & ~opened).any())


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION])
def test_attention_backends(splits: RecordSplits, backend: SDPBackend) -> None:
    model, batch = tiny_llava().cuda(), on_gpu(record_batch(splits))
    with torch.no_grad():
        expected = batch_nll(model, batch)
        with sdpa_kernel(backend):
            found = batch_nll(model, batch)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_steps_of_locating_do_not_wait_for_the_device(splits: RecordSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivacyLocatorModule, "_steps_between_syncs", 1000)
    batch = on_gpu(record_batch(splits))
    locator = PrivacyLocatorModule(tiny_llava(), [1], max_steps=3, stop_loss=-1.0).cuda()
    locator._losses.fast_path.restore(True)
    positions = torch.zeros_like(batch["subject_mask"], dtype=torch.bool)
    last = batch["subject_mask"].int() * torch.arange(positions.shape[1], device="cuda")
    positions[torch.arange(len(last), device="cuda"), last.argmax(1)] = True
    start = {1: torch.full((len(last), 32), 2.0, device="cuda", requires_grad=True)}
    nll = locator._losses.prepare(batch, positions, start)
    torch.autograd.grad(nll(start).sum(), [start[1]])  # first use of kernels
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(2):
        (gradient,) = torch.autograd.grad(nll(start).sum(), [start[1]])
    torch.cuda.set_sync_debug_mode("default")
    assert bool(gradient.isfinite().all())
