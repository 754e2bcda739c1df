"""The benchmark metrics over two processes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lightning_neuralgate.errors import DataFormatError
from tests.helpers.gloo import in_two_processes
from tests.metrics.test_benchmark_metrics import METRICS, same

# name -> the item indices of each process, batch by batch; the two questions of an image are 30 items apart
SCENES: dict[str, tuple[list[range], list[range]]] = {
    "pairs across processes": ([range(0, 7), range(7, 30)], [range(30, 60)]),
    "interleaved": ([range(0, 60, 2)], [range(1, 30, 2), range(31, 60, 2)]),
    "one process without answers": ([range(0, 60)], []),
}


def _count(rank: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for scene, ranks in SCENES.items():
        for name, (create, columns, _) in METRICS.items():
            metric = create()
            for batch in ranks[rank]:
                metric.update(*([column[index] for index in batch] for column in columns))
            found[scene, name] = metric.compute()
            # after compute, each process keeps its own answers
            metric.reset()
            metric.update(*([column[index] for index in ((0, 30), (1, 31))[rank]] for column in columns))
            found[scene, name, "reset"] = metric.compute()
    create, columns, _ = METRICS["MME"]
    metric = create()
    metric.update(*(column[: 1 + 29 * rank] for column in columns))
    try:
        metric.compute()
    except DataFormatError as error:
        found["odd"] = str(error)
    return found


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return in_two_processes(_count, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("scene", SCENES)
def test_two_processes_equal_one(counted: list[dict[Any, Any]], scene: str, name: str) -> None:
    _, columns, function = METRICS[name]
    for found in counted:
        assert same(found[scene, name], function(*columns))
        again = [[column[index] for index in (0, 30, 1, 31)] for column in columns]
        assert same(found[scene, name, "reset"], function(*again))


def test_an_image_with_one_question_raises_in_all_processes(counted: list[dict[Any, Any]]) -> None:
    # process 0 has one answer, about image 0; process 1 has one about each of the first 30
    assert counted[0]["odd"] == "an image of another process has 1 questions; expected 2"
    assert re.fullmatch(r"image '\w+/[1-9]\d?' has 1 questions; expected 2", counted[1]["odd"])
