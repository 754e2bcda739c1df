from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.positions import Scope
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from tests.helpers.launch import launch
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import tiny_llava, tiny_splits
from tests.helpers.training import UserModule, datamodule, random_gate, train
from tests.strategies.runs import CASES, LAYER, TAU, WORLD_SIZES, Case, cases_of, load_weights, train_plain_loop

QUICK = {
    str(case) for case in CASES if sum(getattr(case, name) == getattr(CASES[0], name) for name in Case._fields) % 2 == 0
}
"""Half of the cases, in which each value of a setting occurs with each value of every other one."""


def runs(scope: Scope | None = None) -> list[Any]:
    """Return strategies with their cases as parameters; `make test-all` has those that are not quick, too."""
    return [
        pytest.param(strategy, case, id=f"{strategy}-{case}", marks=[] if str(case) in QUICK else pytest.mark.slow)
        for strategy in WORLD_SIZES
        for case in cases_of(strategy)
        if scope in (None, case.scope)
    ]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the selected cases of all strategies; strategies with the same number of processes share a launch."""
    out = tmp_path_factory.mktemp("strategies")
    with_case = [item for item in request.session.items if item.path == Path(__file__) and "case" in item.fixturenames]  # type: ignore[attr-defined]
    cases = {str(item.callspec.params["case"]) for item in with_case}  # type: ignore[attr-defined]
    groups: dict[tuple[int, str], list[str]] = {}
    for strategy, world in WORLD_SIZES.items():
        # ddp_fork starts its processes itself
        key = (1, strategy) if strategy == "ddp_fork" else (world, "")
        groups.setdefault(key, []).append(strategy)
    for (processes, _), strategies in groups.items():
        launch("-m", "tests.strategies.runs", ",".join(strategies), str(out), ",".join(cases), world=processes)
    return out


@cache
def loop(world: int, case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run the plain loop once for all tests; return the weights before and after it."""
    with TemporaryDirectory() as scratch:
        return train_plain_loop(world, case, Path(scratch))


@pytest.mark.parametrize(("strategy", "case"), runs())
def test_equals_the_plain_loop(folder: Path, strategy: str, case: Case) -> None:
    found = load_weights(folder, strategy, case)
    before, expected = loop(WORLD_SIZES[strategy], case)
    assert found.keys() == expected.keys() == before.keys()
    for name, weight in expected.items():
        assert relative_error(weight, before[name]) > 1e-2, "the weights have to change"
        if case.precision == "32-true":
            assert relative_error(found[name], weight) < 1e-6
        else:  # sums in another order are rounded differently
            assert relative_error(found[name] - before[name], weight - before[name]) < 0.03


@pytest.mark.parametrize(("strategy", "case"), runs(scope="all"))
def test_masked_rows_are_bit_identical(folder: Path, strategy: str, case: Case) -> None:
    before, _ = loop(WORLD_SIZES[strategy], case)
    (name,) = (name for name in before if not name.endswith("lora_A.default.weight"))
    model = tiny_llava()
    gate = random_gate(model, (LAYER,))
    unmasked = torch.stack([gate.mask(subject, LAYER, TAU) for subject in gate.subjects]).any(0)
    assert 0 < int(unmasked.sum()) < find_decoder(model).hidden_size
    changed = (load_weights(folder, strategy, case)[name] != before[name]).any(1)
    assert torch.equal(changed, unmasked)


@pytest.mark.parametrize(
    ("setup", "error"),
    [
        ("scope all", r"UnsupportedSetupError: scope 'all' .*FSDP1 .*use FSDP2 through ModelParallelStrategy"),
        ("flat parameters", "UnsupportedSetupError: .*use_orig_params=True"),
        ("other model", "GateMismatchError: the gate was located in another model .*checksum"),
        (
            "locator",
            "UnsupportedSetupError: PrivacyLocatorModule .*FSDPStrategy; use 'ddp', or .*ModelParallelStrategy",
        ),
        ("editor", "UnsupportedSetupError: PrivacyEditModule .*FSDPStrategy; use 'ddp', or .*ModelParallelStrategy"),
    ],
)
def test_unsupported_setups_of_fsdp1_are_refused_in_every_process(folder: Path, setup: str, error: str) -> None:
    for rank in range(WORLD_SIZES["fsdp1"]):
        errors = json.loads((folder / f"refusals-{rank}.json").read_text(encoding="utf-8"))
        assert re.match(error, errors[setup])


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Has the name of the real strategy, which is all that is checked; deepspeed need not be installed."""


@pytest.mark.parametrize("user", ["NeuralGateCallback", "PrivacyLocatorModule", "PrivacyEditModule"])
def test_deepspeed_is_refused_by_name(tmp_path: Path, user: str) -> None:
    model = tiny_llava()
    modules: dict[str, LightningModule] = {
        "PrivacyLocatorModule": PrivacyLocatorModule(model, [LAYER]),
        "PrivacyEditModule": PrivacyEditModule(model, [LAYER]),
    }
    module = modules.get(user) or UserModule(model)
    data = datamodule(tiny_splits(tmp_path))
    with pytest.raises(
        UnsupportedSetupError, match=rf"{user} .*DeepSpeedStrategy; use 'ddp', or .*ModelParallelStrategy"
    ):
        train(module, data, NeuralGateCallback(random_gate(model)), strategy=DeepSpeedStrategy(torch.device("cpu")))
