from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.hf.decoder import find_decoder
from tests.gate.test_key_space import random_keys, trained_model, trained_parameters
from tests.helpers.launch import launch
from tests.helpers.reference import relative_error
from tests.helpers.training import loss_of
from tests.strategies.key_runs import TRAINABLE, collect
from tests.strategies.runs import make_optimizer, micro_batches

STRATEGIES = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("keys")
    launch("-m", "tests.strategies.key_runs", ",".join(STRATEGIES), str(out), world=2)
    return out


def train_plain_loop(trainable: str, folder: Path) -> dict[str, Tensor]:
    """Train on two batches per step in one process: W <- W0 + (W - W0) P."""
    network = trained_model(trainable)
    projection: Any = find_decoder(network).output_projection(1)
    p = random_keys().projector(1, share=0.9).matrix
    weight = projection.lora_A["default"].weight if trainable == "lora" else projection.weight
    start = torch.zeros_like(weight) if trainable == "lora" else weight.detach().clone()
    with torch.no_grad():
        weight.copy_(start + (weight - start) @ p)
    optimizer = make_optimizer([p for p in network.parameters() if p.requires_grad])
    batches = micro_batches(folder)
    for first in range(0, len(batches), 2):
        optimizer.zero_grad()
        for batch in batches[first : first + 2]:
            (loss_of(network, batch) / 2).backward()
        optimizer.step()
        with torch.no_grad():
            weight.copy_(start + (weight - start) @ p)
    return trained_parameters(network)


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_equals_the_plain_loop(folder: Path, tmp_path: Path, trainable: str) -> None:
    expected, before = train_plain_loop(trainable, tmp_path), trained_parameters(trained_model(trainable))
    for strategy in STRATEGIES:
        found = load_file(folder / f"{strategy}-{trainable}.safetensors")
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            assert relative_error(found[name], weight) < 1e-6
            assert not torch.equal(weight, before[name]), "the weights have to change"


def test_the_covariance_does_not_depend_on_the_processes(folder: Path, tmp_path: Path) -> None:
    expected = collect(tmp_path)
    assert expected is not None
    for strategy in STRATEGIES:
        found = InputCovariance.from_pretrained(folder / f"{strategy}-keys")
        assert (found.tokens, found.prompts) == (expected.tokens, 9)
        for layer in (0, 1):
            assert relative_error(found.covariance(layer), expected.covariance(layer)) < 1e-6


def test_fsdp1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_neuralgate.gate.callback.uses_fsdp1", lambda root: True)
    callback = NeuralGateCallback(None, keep=random_keys())
    with pytest.raises(UnsupportedSetupError, match=r"keep .*FSDP1.* use FSDP2"):
        callback._check_strategy(SimpleNamespace(strategy=None), trained_model("full"))  # type: ignore[arg-type]
