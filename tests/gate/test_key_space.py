"""With `keep`, training equals a plain loop that projects the change after each step, and resumes bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import GateMismatchError, UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.key_space import _local
from lightning_neuralgate.gate.keys import InputCovariance, KeyProjector
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.identity import ModelIdentity
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import QUIET, UserModule, datamodule, loss_of, random_gate, train
from tests.strategies.test_grad_scaler import make_scaler

SHARE = 0.8
STEPS = 4


def random_keys(layers: tuple[int, ...] = (1,)) -> InputCovariance:
    """A covariance of the tiny model with a falling spectrum."""
    generator = torch.Generator().manual_seed(7)
    samples = {layer: torch.randn(200, 48, generator=generator) * torch.logspace(0, -1, 48) for layer in layers}
    covariances = {layer: sample.T @ sample / 200 for layer, sample in samples.items()}
    return InputCovariance(covariances, ModelIdentity.of(tiny_llava()), tokens=200, prompts=9)


def trained_model(trainable: str, **options: Any) -> nn.Module:
    """A tiny LLaVA in which one projection trains, or a fresh LoRA on it."""
    model: Any = tiny_llava().requires_grad_(False)
    if trainable == "full":
        find_decoder(model).output_projection(1).requires_grad_(True)
        return model  # type: ignore[no-any-return]
    torch.manual_seed(5)
    target = r".*language_model\.layers\.1\.mlp\.down_proj"
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=target, lora_dropout=0.0, **options))  # type: ignore[return-value]


def weight_of(network: nn.Module) -> Tensor:
    """The weight of the projection, with adapters merged."""
    projection: Any = find_decoder(network).output_projection(1)
    base = getattr(projection, "base_layer", projection).weight.detach().clone()
    for name, first in getattr(projection, "lora_A", {}).items():
        base += projection.scaling[name] * projection.lora_B[name].weight.detach() @ first.weight.detach()
    return base  # type: ignore[no-any-return]


def trained_parameters(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}


class Adapted(UserModule):
    """Trains by AdamW whatever requires a gradient."""

    def __init__(self, network: nn.Module, manual: bool = False) -> None:
        trained = [p for p in network.parameters() if p.requires_grad]
        super().__init__(network, layers=())
        for parameter in trained:
            parameter.requires_grad_(True)
        self.automatic_optimization = not manual

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.network)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)


@pytest.fixture
def batches(splits: RecordSplits) -> list[dict[str, Any]]:
    return list(datamodule(splits, pairs_per_batch=1).pairs_dataloader())[:STEPS]


def loader(batches: list[dict[str, Any]]) -> Any:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def train_plain_loop(
    network: nn.Module, batches: list[Any], accumulate: int, project: KeyProjector, soft: bool
) -> None:
    """W <- W0 + (W - W0) P after each step; with a soft P the steps are projected, since P P is not P."""
    projection: Any = find_decoder(network).output_projection(1)
    start, optimizer = projection, make_optimizer(network)
    p = project.matrix
    is_lora = hasattr(projection, "lora_A")
    weight = projection.lora_A["default"].weight if is_lora else projection.weight
    if is_lora:
        with torch.no_grad():
            weight.copy_(weight @ p)
    start = torch.zeros_like(weight) if is_lora else weight.detach().clone()
    for first in range(0, len(batches), accumulate):
        before = weight.detach().clone()
        optimizer.zero_grad()
        for batch in batches[first : first + accumulate]:
            (loss_of(network, batch) / accumulate).backward()
        optimizer.step()
        with torch.no_grad():
            origin = before if soft else start
            weight.copy_(origin + (weight - origin) @ p)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("strength", [{"keep_share": SHARE}, {"keep_soft": 0.5}], ids=["hard", "soft"])
@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_equals_the_plain_loop(batches: list[Any], trainable: str, strength: dict[str, float], accumulate: int) -> None:
    keys, network, expected = random_keys(), trained_model(trainable), trained_model(trainable)
    project = keys.projector(1, strength.get("keep_share"), strength.get("keep_soft"))
    before = weight_of(network)
    callback = NeuralGateCallback(None, keep=keys, **strength)
    options = {"accumulate_grad_batches": accumulate, "max_steps": -1, "max_epochs": 1}
    train(Adapted(network), loader(batches), callback, **options)
    train_plain_loop(expected, batches, accumulate, project, "keep_soft" in strength)
    change = weight_of(network) - before
    assert relative_error(weight_of(expected), before) > 1e-2, "the weights have to change"
    assert relative_error(weight_of(network), weight_of(expected)) < 1e-6
    assert relative_error(change, weight_of(expected) - before) < 1e-5
    if "keep_share" in strength:
        assert float((change @ project.directions).norm() / change.norm()) < 1e-5
    ungated = trained_model(trainable)
    train(Adapted(ungated), loader(batches), **options)
    free = weight_of(ungated) - before
    assert float((free @ project.directions).norm() / free.norm()) > 0.1, "and the callback's hooks are gone"


def test_steps_under_autocast_are_projected_in_float32(batches: list[Any]) -> None:
    """A module with manual optimization, as the paper's schedule, steps its optimizer within the Trainer's autocast."""
    keys, network = random_keys(), trained_model("full")
    before = weight_of(network)
    train(Adapted(network, manual=True), loader(batches), NeuralGateCallback(None, keep=keys), precision="bf16-mixed")
    change = weight_of(network) - before
    assert float(change.norm()) > 0
    assert float((change @ keys.projector(1, share=0.9).directions).norm() / change.norm()) < 1e-5


def test_a_skipped_step_changes_nothing(batches: list[Any]) -> None:
    keys, network, scaler = random_keys(), trained_model("full"), make_scaler()
    seen = [weight_of(network)]

    class Recording(Adapted):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(weight_of(network))

    plugins = [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
    train(Recording(network), loader(batches), NeuralGateCallback(None, keep=keys), plugins=plugins, max_steps=3)
    assert [not torch.equal(a, b) for a, b in pairwise(seen)][:2] == [False, True]
    change = seen[-1] - seen[0]
    assert float((change @ keys.projector(1, share=0.9).directions).norm() / change.norm()) < 1e-5


@pytest.mark.parametrize("scope", ["subject_last", "all"])
def test_gate_and_key_space_together(batches: list[Any], scope: Any) -> None:
    """With scope `all`, masked rows stay bit-identical in every step, also those that an earlier step has changed."""
    keys, network = random_keys(), trained_model("full")
    gate = random_gate(network)
    seen, subjects = [weight_of(network)], []

    class Recording(Adapted):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(weight_of(network))
            subjects.append(set(batch["subject"]))

    train(Recording(network), loader(batches), NeuralGateCallback(gate, scope, 0.5, keep=keys), max_steps=STEPS)
    assert len(subjects) == STEPS
    for (before, after), names in zip(pairwise(seen), subjects, strict=True):
        step = after - before
        assert float((step @ keys.projector(1, share=0.9).directions).norm() / step.norm()) < 1e-4
        if scope == "all":
            unmasked = torch.stack([gate.mask(name, 1, 0.5) for name in names]).any(0)
            assert torch.equal((after != before).any(1), unmasked)


def test_a_bias_stays_as_it_is(batches: list[Any]) -> None:
    network = trained_model("full")
    mlp: Any = find_decoder(network).layer(1).mlp
    mlp.down_proj = nn.Linear(48, 32)
    before = [p.detach().clone() for p in mlp.down_proj.parameters()]
    train(Adapted(network), loader(batches), NeuralGateCallback(None, keep=random_keys()))
    assert [torch.equal(p, old) for p, old in zip(mlp.down_proj.parameters(), before, strict=True)] == [False, True]


def fit(
    network: nn.Module, splits: RecordSplits, callback: NeuralGateCallback, epochs: int, file: Path | None
) -> Trainer:
    trainer = Trainer(**QUIET, max_epochs=epochs, limit_val_batches=0, callbacks=[callback])
    data = datamodule(splits, pairs_per_batch=2, shuffle=True)
    trainer.fit(Adapted(network), datamodule=data, ckpt_path=file, weights_only=False)
    return trainer


@pytest.mark.parametrize("strength", [{"keep_share": SHARE}, {"keep_soft": 0.5}], ids=["hard", "soft"])
@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_a_resumed_training_is_bit_identical(
    splits: RecordSplits, tmp_path: Path, trainable: str, strength: dict[str, float]
) -> None:
    def callback(**changes: Any) -> NeuralGateCallback:
        return NeuralGateCallback(None, keep=random_keys(), **{**strength, **changes})

    whole, first, resumed = (trained_model(trainable) for _ in range(3))
    fit(whole, splits, callback(), 2, None)
    fit(first, splits, callback(), 1, None).save_checkpoint(tmp_path / "first.ckpt")
    fit(resumed, splits, callback(), 2, tmp_path / "first.ckpt")
    expected, found = trained_parameters(whole), trained_parameters(resumed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(not torch.equal(trained_parameters(first)[name], value) for name, value in expected.items())
    for other in (callback(keep_soft=0.7), NeuralGateCallback(random_gate(tiny_llava()))):
        with pytest.raises(GateMismatchError, match=r"keep .*this callback has"):
            fit(trained_model(trainable), splits, other, 2, tmp_path / "first.ckpt")


def not_fresh() -> nn.Module:
    network = trained_model("lora")
    nn.init.ones_(find_decoder(network).output_projection(1).lora_B["default"].weight)  # type: ignore[index, arg-type]
    return network


def quantized() -> nn.Module:
    network = trained_model("lora")
    base: Any = find_decoder(network).output_projection(1).base_layer
    base.weight = nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), requires_grad=False)
    return network


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "dora": (lambda: trained_model("lora", use_dora=True), UnsupportedSetupError, "not DoRA"),
    "adapter with a change": (not_fresh, UnsupportedSetupError, "is not fresh"),
    "quantized": (quantized, UnsupportedSetupError, "is quantized"),
    "frozen": (lambda: tiny_llava().requires_grad_(False), UnsupportedSetupError, "nothing at .* trains"),
    "other model": (lambda: tiny_llava(seed=1), GateMismatchError, "was collected in another model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_projected_is_refused(name: str) -> None:
    make, error, message = REFUSED[name]
    network = make()
    callback = NeuralGateCallback(None, keep=random_keys())
    assert callback.key_space is not None
    with pytest.raises(error, match=message):
        callback.key_space.start(network, callback.layers, [])


def test_bad_arguments_are_refused() -> None:
    gate, keys = random_gate(tiny_llava()), random_keys()
    with pytest.raises(ValueError, match="give a gate, or keep, or both"):
        NeuralGateCallback(None)
    with pytest.raises(ValueError, match="between 0 and 1"):
        NeuralGateCallback(gate, keep=keys, keep_share=1.5)
    with pytest.raises(GateMismatchError, match=r"input covariance has no layers \[1\]; it covers \[0\]"):
        NeuralGateCallback(gate, keep=random_keys((0,)))
    with pytest.raises(UnsupportedSetupError, match="in no optimizer"):
        NeuralGateCallback(None, keep=keys).key_space.start(trained_model("full"), [1], [])  # type: ignore[union-attr]
    columns = SimpleNamespace(placements=[SimpleNamespace(is_replicate=lambda: False, is_shard=lambda dim: dim == 1)])
    columns.to_local = None
    with pytest.raises(UnsupportedSetupError, match="sharded by row"):
        _local(columns)


def test_edits_with_shared_prefixes_need_no_subjects(splits: RecordSplits) -> None:
    """Also in the paper's schedule; the batches have layouts, which callbacks that look for subjects would not allow."""
    keys = random_keys()
    network = tiny_llava()
    before = weight_of(network)
    callback = NeuralGateCallback(None, keep=keys)
    assert callback.fits_layout({}, None)  # type: ignore[arg-type]
    editor = PrivacyEditModule(network, [1], tiny_processor(), schedule="paper", lr=1e-2, steps_per_pair=2)
    train(editor, datamodule(splits, pairs_per_batch=1), callback, max_steps=-1, max_epochs=1, precision="bf16-mixed")
    change = weight_of(network) - before
    assert float(change.norm()) > 0
    assert float((change @ keys.projector(1, share=0.9).directions).norm() / change.norm()) < 1e-5
    assert callback.key_space is not None
    assert callback.key_space.removed == {1: keys.projector(1, share=0.9).removed}
