from __future__ import annotations

import re
from typing import Any

import pytest

from lightning_neuralgate.errors import DataFormatError
from tests.helpers.gloo import in_two_processes
from tests.metrics.test_benchmark_metrics import METRICS, same

# name -> the places of the items that each process has, batch by batch; the questions of an image are 30 places apart
SCENES: dict[str, tuple[list[range], list[range]]] = {
    "pairs across processes": ([range(0, 7), range(7, 30)], [range(30, 60)]),
    "interleaved": ([range(0, 60, 2)], [range(1, 30, 2), range(31, 60, 2)]),
    "one process without answers": ([range(0, 60)], []),
}


def _count(rank: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for scene, ranks in SCENES.items():
        for name, (made, columns, _) in METRICS.items():
            metric = made()
            for batch in ranks[rank]:
                metric.update(*([column[place] for place in batch] for column in columns))
            found[scene, name] = metric.compute()
            # counting goes on with the process's own answers
            metric.reset()
            metric.update(*([column[place] for place in ((0, 30), (1, 31))[rank]] for column in columns))
            found[scene, name, "reset"] = metric.compute()
    made, columns, _ = METRICS["MME"]
    metric = made()
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
def test_two_processes_count_as_one(counted: list[dict[Any, Any]], scene: str, name: str) -> None:
    _, columns, function = METRICS[name]
    for found in counted:
        assert same(found[scene, name], function(*columns))
        again = [[column[place] for place in (0, 30, 1, 31)] for column in columns]
        assert same(found[scene, name, "reset"], function(*again))


def test_an_image_without_its_second_question_is_found_in_all_processes(counted: list[dict[Any, Any]]) -> None:
    # process 0 has one answer, about image 0; process 1 has one about each of the first 30
    assert counted[0]["odd"] == "an image that another process has seen has 1 questions; MME asks two of each image"
    assert re.fullmatch(r"image '\w+/[1-9]\d?' has 1 questions; MME asks two of each image", counted[1]["odd"])
