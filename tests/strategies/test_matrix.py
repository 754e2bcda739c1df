"""The same weights under every strategy as from a plain loop, and closed rows that never move."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from tests.helpers.launch import launch
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import tiny_llava, tiny_splits
from tests.helpers.training import SomebodysModule, datamodule, random_gate, train
from tests.strategies.runs import INTERRUPTED, LAYER, TAU, WORLD, Case, Plain, cases_of, plain, result, told

RUNS = [(strategy, case) for strategy in WORLD for case in cases_of(strategy)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases of all strategies; those of as many processes share a launch."""
    out = tmp_path_factory.mktemp("strategies")
    together: dict[tuple[int, str], list[str]] = {}
    for strategy, world in WORLD.items():
        # it starts its processes itself
        key = (1, strategy) if strategy == "ddp_fork" else (world, "")
        together.setdefault(key, []).append(strategy)
    for (processes, _), strategies in together.items():
        launch("-m", "tests.strategies.runs", ",".join(strategies), str(out), world=processes)
    return out


@cache
def loop(world: int, case: Case) -> Plain:
    """The plain loop's result, which several tests look at."""
    with TemporaryDirectory() as scratch:
        return plain(world, case, Path(scratch))


@pytest.mark.parametrize(("strategy", "case"), RUNS, ids=[f"{strategy}-{case}" for strategy, case in RUNS])
def test_equals_the_plain_loop(folder: Path, strategy: str, case: Case) -> None:
    found = result(folder, strategy, case)
    before, expected, _ = loop(WORLD[strategy], case)
    assert found.keys() == expected.keys() == before.keys()
    for name, weight in expected.items():
        assert relative_error(weight, before[name]) > 1e-2, "a training that does not move shows nothing"
        if case.precision == "32-true":
            assert relative_error(found[name], weight) < 1e-6
        else:  # half precision rounds sums that are taken in another order
            assert relative_error(found[name] - before[name], weight - before[name]) < 0.03


@pytest.mark.parametrize(("strategy", "case"), [run for run in RUNS if run[1].scope == "all"], ids=str)
def test_closed_rows_are_bit_identical(folder: Path, strategy: str, case: Case) -> None:
    before, _, _ = loop(WORLD[strategy], case)
    (name,) = (name for name in before if not name.endswith("lora_A.default.weight"))
    model = tiny_llava()
    gate = random_gate(model, (LAYER,))
    opened = torch.stack([gate.mask(subject, LAYER, TAU) for subject in gate.subjects]).any(0)
    assert 0 < int(opened.sum()) < find_decoder(model).hidden_size
    moved = (result(folder, strategy, case)[name] != before[name]).any(1)
    assert torch.equal(moved, opened)


@pytest.mark.parametrize(("strategy", "case"), RUNS, ids=[f"{strategy}-{case}" for strategy, case in RUNS])
def test_every_process_logs_the_share_of_changed_rows(folder: Path, strategy: str, case: Case) -> None:
    changed = loop(WORLD[strategy], case).changed
    assert (0 < changed[0] <= changed[-1] < 1) if case.scope == "all" else set(changed) == {1.0}
    # FSDP1 leaves no process a whole row to compare
    expected = [] if strategy.startswith("fsdp1") else changed
    assert told(folder, strategy, case) == [expected] * WORLD[strategy]


@pytest.mark.parametrize(
    ("strategy", "case"), [(s, case) for s, cases in INTERRUPTED.items() for case in cases], ids=str
)
def test_a_resumed_training_compares_with_the_first_beginning(folder: Path, strategy: str, case: Case) -> None:
    changed = loop(WORLD[strategy], case).changed
    assert changed[0] < changed[-1], "forgotten rows would not be missed"
    assert told(folder, strategy, case, resumed=True) == [changed] * WORLD[strategy]


@pytest.mark.parametrize(
    ("tried", "error"),
    [
        ("all", r"UnsupportedSetupError: scope 'all' .*FSDP1 .*use FSDP2 through ModelParallelStrategy"),
        ("hidden", "UnsupportedSetupError: .*use_orig_params=True"),
        ("other", "GateMismatchError: the gate was located in another model .*checksum"),
        (
            "locator",
            "UnsupportedSetupError: PrivacyLocatorModule .*FSDPStrategy; use 'ddp', or .*ModelParallelStrategy",
        ),
        ("editor", "UnsupportedSetupError: PrivacyEditModule .*FSDPStrategy; use 'ddp', or .*ModelParallelStrategy"),
    ],
)
def test_what_fsdp1_cannot_do_is_refused_in_every_process(folder: Path, tried: str, error: str) -> None:
    for rank in range(WORLD["fsdp1"]):
        told_there = json.loads((folder / f"refusals-{rank}.json").read_text(encoding="utf-8"))
        assert re.match(error, told_there[tried])


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Goes by the name, which is all that is looked at: deepspeed need not be there."""


@pytest.mark.parametrize("who", ["NeuralGateCallback", "PrivacyLocatorModule", "PrivacyEditModule"])
def test_deepspeed_is_refused_by_name(tmp_path: Path, who: str) -> None:
    model = tiny_llava()
    modules: dict[str, LightningModule] = {
        "PrivacyLocatorModule": PrivacyLocatorModule(model, [LAYER]),
        "PrivacyEditModule": PrivacyEditModule(model, [LAYER]),
    }
    module = modules.get(who) or SomebodysModule(model)
    data = datamodule(tiny_splits(tmp_path))
    with pytest.raises(
        UnsupportedSetupError, match=rf"{who} .*DeepSpeedStrategy; use 'ddp', or .*ModelParallelStrategy"
    ):
        train(module, data, NeuralGateCallback(random_gate(model)), strategy=DeepSpeedStrategy(torch.device("cpu")))
