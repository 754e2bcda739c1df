"""RtA, answer rate and EtA over two processes."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from lightning_neuralgate.metrics import AnswerRate, ExpectToAnswer, RefuseToAnswerRate
from lightning_neuralgate.metrics.functional import answer_rate, expect_to_answer, refuse_to_answer_rate
from lightning_neuralgate.runtime.process import process_group_closed
from tests.helpers.gloo import in_two_processes

# name -> one list of batches per rank; a row is (answer, whether the query is sensitive)
SCENES: dict[str, tuple[list[list[tuple[str, bool]]], list[list[tuple[str, bool]]]]] = {
    "uneven": (
        [[("Sorry.", True), ("Red.", False)], [("42", True), ("Blue.", False), ("I won't say.", False)]],
        [[("I cannot say.", True), ("7", True), ("", False)]],
    ),
    "one rank without benign answers": (
        [[("Sorry.", True), ("Red.", False), ("I can't.", False), ("Green.", False)]],
        [[("I cannot say.", True)], [("9", True), ("I'm unable.", True)]],
    ),
    "one rank without answers": ([[("Sorry.", True), ("8", True), ("Red.", False)]], []),
    "no benign answers at all": ([[("Sorry.", True)]], [[("8", True), ("9", True)]]),
}


def _rows(batches: list[list[tuple[str, bool]]]) -> list[tuple[str, bool]]:
    return [row for batch in batches for row in batch]


def _count(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, ranks in SCENES.items():
        eta = ExpectToAnswer()
        collected = MetricCollection({"rta": RefuseToAnswerRate(), "rate": AnswerRate("gcg")})
        own = []
        for batch in ranks[rank]:
            answers = [answer for answer, _ in batch]
            own.append(eta(answers, [sensitive for _, sensitive in batch]))
            collected.update(answers)
        found[name] = {
            "parts": tuple(eta.parts()),
            "eta": eta.compute(),
            "rta": eta.rta_sensitive.compute(),
            "collected": collected.compute(),
            "own": own,
            "total_after": int(eta.rta_sensitive.total) + int(eta.answer_rate_benign.total),
        }
        eta.update(["Sorry.", "Pink."], [True, False])
        found[name]["more"] = tuple(eta.parts())
        eta.reset()
        eta.update(["Sorry.", "Pink.", "I can't."], [True, False, False])
        found[name]["reset"] = tuple(eta.parts())
    return found


def _same(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    """Return whether all values are exactly equal, counting NaN as equal to NaN."""
    return len(first) == len(second) and torch.equal(
        torch.stack(first).nan_to_num(-1), torch.stack(second).nan_to_num(-1)
    )


def _expected(rows: list[tuple[str, bool]]) -> tuple[torch.Tensor, ...]:
    return tuple(
        expect_to_answer([a for a, sensitive in rows if sensitive], [a for a, sensitive in rows if not sensitive])
    )


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two_processes(_count, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("scene", SCENES)
def test_two_processes_equal_one(counted: list[dict[str, Any]], scene: str) -> None:
    rows = _rows(SCENES[scene][0]) + _rows(SCENES[scene][1])
    answers = [answer for answer, _ in rows]
    more = [("Sorry.", True), ("Pink.", False)] * 2
    for rank, found in enumerate(counted):
        own, rates = SCENES[scene][rank], found[scene]
        assert _same(rates["parts"], _expected(rows))
        assert _same([rates["eta"], rates["rta"]], _expected(rows)[:2])
        assert torch.equal(rates["collected"]["rta"], refuse_to_answer_rate(answers))
        assert torch.equal(rates["collected"]["rate"], answer_rate(answers, "gcg"))
        assert all(_same([value], _expected(batch)[:1]) for value, batch in zip(rates["own"], own, strict=True))
        assert rates["total_after"] == len(_rows(own)), "a process keeps its own counts after compute"
        assert _same(rates["more"], _expected(rows + more))
        assert rates["reset"] == (0.75, 1, 0.5)


class LoggingModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.eta = ExpectToAnswer()

    def teardown(self, stage: str) -> None:
        with process_group_closed():  # Lightning starts this process, so there is no other place to close the group
            pass

    def val_dataloader(self) -> DataLoader[Any]:
        rows = _rows(SCENES["one rank without benign answers"][self.trainer.global_rank])
        return DataLoader(rows, batch_size=2)

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
    trainer = Trainer(
        accelerator="cpu",
        strategy="ddp_spawn",
        devices=2,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (logged,) = trainer.validate(LoggingModule(), verbose=False)
    # sensitive: all but "9" refuse, 3 of 4; benign: "Red." and "Green." answer, 2 of 3
    assert logged["val/rta_sensitive"] == 3 / 4
    assert logged["val/answer_rate_benign"] == pytest.approx(2 / 3)
    assert logged["val/eta"] == pytest.approx((3 / 4 + 2 / 3) / 2)
