"""All metrics over two processes."""

from __future__ import annotations

import math
import re
import socket
from itertools import chain
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics import AnswerRate, ExpectToAnswer, RefuseToAnswerRate
from lightning_neuralgate.metrics.functional import answer_rate, refuse_to_answer_rate
from lightning_neuralgate.runtime.process import process_group_closed
from tests.helpers.gloo import in_two_processes
from tests.helpers.training import QUIET
from tests.metrics.all_metrics import ANSWERS, METRICS, floats, same

# name -> the item indices of each process, batch by batch; the two questions of an image are 30 items apart, and every third
# query is sensitive
SCENES: dict[str, tuple[list[range], list[range]]] = {
    "pairs across processes": ([range(0, 7), range(7, 30)], [range(30, 60)]),
    "interleaved": ([range(0, 60, 2)], [range(1, 30, 2), range(31, 60, 2)]),
    "one process without benign answers": ([range(0, 60, 3)], [range(1, 60, 3), range(2, 60, 3)]),
    "no benign answers": ([range(0, 30, 3)], [range(30, 60, 3)]),
    "one process without answers": ([range(0, 60)], []),
    "no answers": ([], []),
}
MORE = ((0, 30), (1, 31))


def _take(columns: Any, indices: Any) -> list[list[Any]]:
    return [[column[index] for index in indices] for column in columns]


def _count(rank: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for scene, ranks in SCENES.items():
        for name, (create, columns, _) in METRICS.items():
            metric = create()
            found[scene, name, "batches"] = [metric(*_take(columns, batch)) for batch in ranks[rank]]
            found[scene, name] = metric.compute()
            # after compute, each process keeps its own answers
            if name != "MME":  # an image cannot have more questions
                metric.update(*_take(columns, MORE[rank]))
                found[scene, name, "more"] = metric.compute()
            metric.reset()
            metric.update(*_take(columns, MORE[rank]))
            found[scene, name, "reset"] = metric.compute()
        collection = MetricCollection({"rta": RefuseToAnswerRate(), "rate": AnswerRate("gcg")})
        for batch in ranks[rank]:
            collection.update(*_take([ANSWERS], batch))
        found[scene] = collection.compute()
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
    indices, more = [*chain(*SCENES[scene][0], *SCENES[scene][1])], [*chain(*MORE)]
    for rank, found in enumerate(counted):
        if indices:
            assert same(found[scene, name], function(*_take(columns, indices)))
        else:
            assert all(map(math.isnan, floats(found[scene, name]).values()))
        if name not in ("MME", "MLLMGuard"):  # whose batches lack a question of an image, or a dimension
            for value, batch in zip(found[scene, name, "batches"], SCENES[scene][rank], strict=True):
                assert same(value, function(*_take(columns, batch)))
        if name != "MME":
            assert same(found[scene, name, "more"], function(*_take(columns, indices + more)))
        assert same(found[scene, name, "reset"], function(*_take(columns, more)))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("scene", SCENES)
def test_a_collection_over_two_processes_equals_one(counted: list[dict[Any, Any]], scene: str) -> None:
    (answers,) = _take([ANSWERS], chain(*SCENES[scene][0], *SCENES[scene][1]))
    expected = {"rta": refuse_to_answer_rate(answers), "rate": answer_rate(answers, "gcg")}
    assert all(same(found[scene], expected) for found in counted)


def test_an_image_with_one_question_raises_in_all_processes(counted: list[dict[Any, Any]]) -> None:
    # process 0 has one answer, about image 0; process 1 has one about each of the first 30
    assert counted[0]["odd"] == "an image of another process has 1 questions; expected 2"
    assert re.fullmatch(r"image '\w+/[1-9]\d?' has 1 questions; expected 2", counted[1]["odd"])


# for each process (answer, whether the query is sensitive); only the first has benign answers
ROWS = (
    [("Sorry.", True), ("Red.", False), ("I can't.", False), ("Green.", False)],
    [("I cannot say.", True), ("9", True), ("I'm unable.", True)],
)


class LoggingModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.eta = ExpectToAnswer()

    def teardown(self, stage: str) -> None:
        with process_group_closed():  # Lightning starts this process, so there is no other place to close the group
            pass

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(ROWS[self.trainer.global_rank], batch_size=2)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.eta.update(*batch)
        self.log("val/rta_sensitive", self.eta.rta_sensitive, batch_size=1)
        self.log("val/answer_rate_benign", self.eta.answer_rate_benign, batch_size=1)
        self.log("val/eta", self.eta, batch_size=1)


def test_a_trainer_with_two_processes_logs_the_rates_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    trainer = Trainer(strategy="ddp_spawn", devices=2, use_distributed_sampler=False, **QUIET)
    (logged,) = trainer.validate(LoggingModule(), verbose=False)
    # sensitive: all but "9" refuse, 3 of 4; benign: "Red." and "Green." answer, 2 of 3
    assert logged["val/rta_sensitive"] == 3 / 4
    assert logged["val/answer_rate_benign"] == pytest.approx(2 / 3)
    assert logged["val/eta"] == pytest.approx((3 / 4 + 2 / 3) / 2)
