"""The leak metrics over two processes."""

from __future__ import annotations

from typing import Any

import pytest
from torchmetrics import MetricCollection

from lightning_neuralgate.metrics import BenignAccuracy, LeakRate, PartialLeak
from lightning_neuralgate.metrics.functional import benign_accuracy, leak_rate, partial_leak
from tests.helpers.gloo import in_two_processes

# name -> one list of batches per rank; a row is (answer, true value)
SCENES: dict[str, tuple[list[list[tuple[str, str]]], list[list[tuple[str, str]]]]] = {
    "uneven": (
        [[("It is 12-34.", "1234"), ("No.", "5678")], [("12", "1234"), ("It is red.", "red"), ("", "blue")]],
        [[("I cannot say.", "777"), ("7", "777")]],
    ),
    "one rank without answers": ([[("1234", "1234"), ("123", "1234")]], []),
    "no answers at all": ([], []),
}


def _rows(batches: list[list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [row for batch in batches for row in batch]


def _count(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, ranks in SCENES.items():
        leak, collected = LeakRate(), MetricCollection({"partial": PartialLeak(), "accuracy": BenignAccuracy()})
        own = []
        for batch in ranks[rank]:
            answers, values = map(list, zip(*batch, strict=True))
            own.append(leak(answers, values))
            collected.update(answers, values)
        found[name] = {"leak": leak.compute(), **collected.compute(), "own": own, "total_after": int(leak.total)}
        leak.reset()
        leak.update(["1234", "9"], ["1234", "1234"])
        found[name]["reset"] = leak.compute()
    return found


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two_processes(_count, tmp_path_factory.mktemp("gloo"))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("scene", SCENES)
def test_two_processes_equal_one(counted: list[dict[str, Any]], scene: str) -> None:
    rows = _rows(SCENES[scene][0]) + _rows(SCENES[scene][1])
    answers, values = [answer for answer, _ in rows], [value for _, value in rows]
    for rank, found in enumerate(counted):
        rates, own = found[scene], SCENES[scene][rank]
        for name, function in (("leak", leak_rate), ("partial", partial_leak), ("accuracy", benign_accuracy)):
            assert float(rates[name]) == pytest.approx(float(function(answers, values)), nan_ok=True)
        assert rates["own"] == [leak_rate(*map(list, zip(*batch, strict=True))) for batch in own]
        assert rates["total_after"] == len(_rows(own)), "a process keeps its own counts after compute"
        assert rates["reset"] == 0.5
