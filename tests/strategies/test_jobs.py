from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_neuralgate.gate.neural_gate import NeuralGate
from tests.helpers.launch import launch
from tests.helpers.tiny_llava import tiny_llava
from tests.strategies.jobs import LAYER, TAU, WEIGHT

WORLD = {"one": 1, "ddp-2": 2, "ddp-3": 3, "fsdp-2": 2, "full-2": 2}
SLOW = ("ddp-3", "full-2")
EACH = [pytest.param(strategy, marks=pytest.mark.slow if strategy in SLOW else []) for strategy in WORLD]
SEVERAL = EACH[1:]
RECORDS, QUERIES = 5, 14


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the selected strategies, and one process to compare them with."""
    out = tmp_path_factory.mktemp("jobs")
    items: list[Any] = [item for item in request.session.items if item.path == Path(__file__)]
    chosen = {"one", *(item.callspec.params["strategy"] for item in items)}
    for world in sorted(set(WORLD.values())):
        group = [strategy for strategy, processes in WORLD.items() if processes == world and strategy in chosen]
        if group:
            launch("-m", "tests.strategies.jobs", ",".join(group), str(out), world=world)
    return out


def results(folder: Path, strategy: str) -> list[dict[str, Any]]:
    """Return the results of each process."""
    return [json.loads((folder / f"{strategy}-{rank}.json").read_text()) for rank in range(WORLD[strategy])]


@pytest.mark.parametrize("strategy", SEVERAL)
def test_the_gate_is_the_same(folder: Path, strategy: str) -> None:
    single, several = (NeuralGate.from_pretrained(folder / f"{name}-gate") for name in ("one", strategy))
    assert several.records == single.records
    assert sum(single.records.values()) == RECORDS
    for subject in single.subjects:
        for layer in single.layers:
            assert torch.equal(several.mask(subject, layer, TAU), single.mask(subject, layer, TAU))
            assert torch.equal(several.rates(subject, layer), single.rates(subject, layer))
    assert 0 < single.mask(single.subjects[0], LAYER, TAU).float().mean() < 1


@pytest.mark.parametrize("strategy", EACH[:3])
def test_no_record_is_located_twice(folder: Path, strategy: str) -> None:
    assert sum(process["located"] for process in results(folder, strategy)) == RECORDS
    saved = [load_file(file) for file in (folder / f"{strategy}-records").iterdir()]
    assert sum(len(records) for records in saved) == 2 * RECORDS, "in two layers"


@pytest.mark.parametrize("strategy", SEVERAL)
def test_rates_are_those_of_one_process(folder: Path, strategy: str) -> None:
    expected = results(folder, "one")[0]["full"]
    rates = expected["history"][0][1]
    assert 0 < rates["held_out/test/eta"] < 1
    assert 0 < rates["held_out/test/leak_rate"] < 1
    processes = results(folder, strategy)
    for process in processes:
        for step, values in process["full"]["history"]:
            assert values == rates, f"after {step} steps"
        assert process["full"]["validated"] == expected["validated"]
    assert sum(process["full"]["counted"] for process in processes) == QUERIES


@pytest.mark.parametrize("strategy", EACH)
def test_benchmarks_are_those_of_one_process(folder: Path, strategy: str) -> None:
    expected = results(folder, "one")[0]["full"]["tasks"]
    figures = expected[0][1]
    assert {name.split("/")[1] for name in figures} == {"pope", "mme", "scienceqa", "mllmguard"}
    assert 0 < figures["tasks/pope/refused"] < 1
    for process in results(folder, strategy):
        for run in ("full", "resumed"):
            assert all(values == figures for _, values in process[run]["tasks"])


@pytest.mark.parametrize("strategy", EACH)
def test_metrics_are_measured_every_two_steps(folder: Path, strategy: str) -> None:
    for process in results(folder, strategy):
        for run, metrics in itertools.product(("full", "resumed"), ("history", "tasks")):
            steps = [step for step, _ in process[run][metrics]]
            assert steps == list(range(0, process[run]["steps"] + 1, 2))


@pytest.mark.parametrize("strategy", EACH)
def test_a_resumed_run_ends_in_the_same_weights(folder: Path, strategy: str) -> None:
    edited = load_file(folder / f"{strategy}-edited.safetensors")
    assert torch.equal(edited["resumed"], edited["full"])
    assert not torch.equal(edited["full"], tiny_llava().state_dict()[WEIGHT])
