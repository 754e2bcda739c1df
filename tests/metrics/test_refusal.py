"""RtA, answer rate and EtA as torchmetrics classes, also inside a LightningModule."""

from __future__ import annotations

import copy
import csv
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics import AnswerRate, ExpectToAnswer, RefuseToAnswerRate
from lightning_neuralgate.metrics.functional import answer_rate, refuse_to_answer_rate
from tests.helpers.training import QUIET

ANSWERS = ["I cannot say.", "It is 42.", "It is red.", "Sorry.", "A passport.", ""]
SENSITIVE = [True, True, False, False, False, False]  # RtA 1/2, answer rate 2/4


@pytest.mark.parametrize("metric", [RefuseToAnswerRate, AnswerRate, ExpectToAnswer])
def test_unknown_variant_raises(metric: Any) -> None:
    with pytest.raises(ValueError, match=r"'gpt4'.*prefix, gcg, xstest"):
        metric(variant="gpt4")


def test_non_string_answers_raise() -> None:
    for call in (refuse_to_answer_rate, answer_rate, RefuseToAnswerRate().update, AnswerRate().update):
        with pytest.raises(DataFormatError, match=r"answer 1 is None of type NoneType"):
            call(["Red.", None])


@pytest.mark.parametrize(
    "sensitive",
    [SENSITIVE, tuple(SENSITIVE), torch.tensor(SENSITIVE), torch.tensor(SENSITIVE).int(), [1, 1, 0, 0, 0, 0]],
)
def test_sensitive_may_be_booleans_or_a_tensor(sensitive: Any) -> None:
    eta = ExpectToAnswer()
    eta.update(ANSWERS, sensitive)
    assert eta.parts() == (0.5, 0.5, 0.5)
    assert eta.compute() == 0.5
    assert (int(eta.rta_sensitive.total), int(eta.answer_rate_benign.total)) == (2, 4)


@pytest.mark.parametrize("call", [ExpectToAnswer.update, ExpectToAnswer.forward])
def test_invalid_roles_raise_and_leave_the_counts(call: Any) -> None:
    eta = ExpectToAnswer()
    with pytest.raises(DataFormatError, match="2 answers and 3 values"):
        call(eta, ["Red.", "Blue."], [True, False, True])
    with pytest.raises(DataFormatError, match="1 answers and 4 values"):
        call(eta, "Red.", [True] * 4)
    with pytest.raises(DataFormatError, match="value 1 is 'benign'"):
        call(eta, ["Red.", "Blue."], [True, "benign"])
    with pytest.raises(DataFormatError, match=r"value 0 is 0\.5"):
        call(eta, ["Red."], torch.tensor([0.5]))
    with pytest.raises(DataFormatError, match="answer 1 is 3"):
        call(eta, ["Red.", 3], [True, False])
    assert (int(eta.rta_sensitive.total), int(eta.answer_rate_benign.total)) == (0, 0)


def test_eta_of_a_batch_with_one_role_is_nan_but_the_batch_counts() -> None:
    eta = ExpectToAnswer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(eta(["Sorry."], [True]))
        assert math.isnan(eta.compute())
        assert eta.parts().rta_sensitive == 1
        assert math.isnan(eta(["Red."], [False]))
        assert eta.compute() == 1


def test_pickled_and_copied_metrics_keep_counting() -> None:
    eta = ExpectToAnswer("gcg")
    eta.update(["Hello!", "Red."], [True, False])
    for copied in (pickle.loads(pickle.dumps(eta)), copy.deepcopy(eta), eta.clone()):
        assert copied.variant == "gcg"
        copied.update(["42", "Blue."], [True, False])
        assert copied.parts() == (0.75, 0.5, 1)
        copied.reset()
        copied.update(["Hello!"], [True])
        assert copied.rta_sensitive.compute() == 1, "still the gcg list"
    assert eta.parts() == (1, 1, 1)


def test_states_of_other_variants_and_metrics_cannot_be_merged() -> None:
    eta = ExpectToAnswer()
    with pytest.raises(ValueError, match="'gcg' cannot be merged into variant 'prefix'"):
        eta.merge_state(ExpectToAnswer("gcg"))
    with pytest.raises(ValueError, match="RefuseToAnswerRate"):
        eta.merge_state(RefuseToAnswerRate())
    rta = RefuseToAnswerRate()
    with pytest.raises(ValueError, match="refused_prefix"):
        rta.merge_state(RefuseToAnswerRate("gcg"))


def test_metric_collection_keeps_variants_apart() -> None:
    rates = MetricCollection(
        {"own": RefuseToAnswerRate(), "gcg": RefuseToAnswerRate("gcg"), "xstest": RefuseToAnswerRate("xstest")}
        | {"answers": AnswerRate(), "eta": ExpectToAnswer()}
    )
    # after a batch on which all agree, compute groups would let them share one state
    rates.update(answers=["Sorry, no.", "Red."], sensitive=[True, False])
    assert {name: float(value) for name, value in rates.compute().items()} == {
        "own": 0.5, "gcg": 0.5, "xstest": 0.5, "answers": 0.5, "eta": 1.0
    }  # fmt: skip
    rates.update(answers=["Hello! Red.", "No, blue."], sensitive=[False, False])
    rates.update(answers=["Hello! Red.", "Green."], sensitive=[False, False])
    found = {name: float(value) for name, value in rates.compute().items()}
    assert found == pytest.approx({"own": 1 / 6, "gcg": 3 / 6, "xstest": 2 / 6, "answers": 5 / 6, "eta": 1.0})
    batch = rates(answers=["I cannot.", "42"], sensitive=[True, True])
    assert float(batch["own"]) == 0.5
    assert math.isnan(batch["eta"])
    assert float(rates.compute()["eta"]) == pytest.approx((2 / 3 + 1) / 2)
    rates.reset()
    rates.update(answers=["Red."], sensitive=[False])
    assert rates["eta"].parts().answer_rate_benign == 1
    assert int(rates["eta"].answer_rate_benign.total) == 1


def test_repr_shows_the_variant() -> None:
    assert repr(RefuseToAnswerRate("gcg")) == "RefuseToAnswerRate(variant='gcg')"
    assert "(answer_rate_benign): AnswerRate(variant='xstest')" in repr(ExpectToAnswer("xstest"))


def test_torchmetrics_arguments_reach_the_parts() -> None:
    eta = ExpectToAnswer(sync_on_compute=False)
    assert not eta.rta_sensitive.sync_on_compute
    assert not eta.answer_rate_benign.sync_on_compute


# (answer in epoch 0, answer in epoch 1, is the query sensitive); batches of 2 mix the kinds unevenly
ROWS = [
    ("I cannot say.", "I cannot say.", True),
    ("It is 42.", "Sorry.", True),
    ("I'm sorry.", "I'm sorry.", True),
    ("It is red.", "I can't tell.", False),
    ("A passport.", "", False),
]
KEYS = ("val/eta", "val/rta_sensitive", "val/answer_rate_benign")
EPOCHS = [((2 / 3 + 1) / 2, 2 / 3, 1.0), (0.5, 1.0, 0.0)]


class LoggingModule(LightningModule):
    def __init__(self, log_at_epoch_end: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.eta = ExpectToAnswer()
        self.log_at_epoch_end = log_at_epoch_end

    def _log_all(self, **settings: Any) -> None:
        self.log("val/eta", self.eta, **settings)
        self.log("val/rta_sensitive", self.eta.rta_sensitive, **settings)
        self.log("val/answer_rate_benign", self.eta.answer_rate_benign, **settings)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        first, second, sensitive = batch
        self.eta.update(second if self.current_epoch else first, sensitive)
        if not self.log_at_epoch_end:
            self._log_all(batch_size=len(first))

    def on_validation_epoch_end(self) -> None:
        if self.log_at_epoch_end:
            self._log_all()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("log_at_epoch_end", [False, True])
def test_a_lightning_module_logs_the_values_of_each_epoch(tmp_path: Path, log_at_epoch_end: bool) -> None:
    module = LoggingModule(log_at_epoch_end)
    loader = DataLoader(ROWS, batch_size=2)
    trainer = Trainer(
        max_epochs=2, num_sanity_val_steps=1, **{**QUIET, "logger": CSVLogger(tmp_path, name="", version="")}
    )
    trainer.fit(module, DataLoader([0]), loader)
    with (tmp_path / "metrics.csv").open() as file:
        logged = [tuple(float(row[key]) for key in KEYS) for row in csv.DictReader(file) if row["val/eta"]]
    assert logged == [pytest.approx(epoch) for epoch in EPOCHS], "neither the sanity check nor an earlier epoch counts"
    assert tuple(float(trainer.callback_metrics[key]) for key in KEYS) == pytest.approx(EPOCHS[1])
    assert int(module.eta.rta_sensitive.total) == int(module.eta.answer_rate_benign.total) == 0

    for _ in range(2):
        (again,) = trainer.validate(module, loader, verbose=False)
        assert tuple(again[key] for key in KEYS) == pytest.approx(EPOCHS[1])

    # validation and reset ran under inference mode; updates must still work outside of it
    module.eta.update(["Sorry.", "Red."], [True, False])
    assert module.eta.compute() == 1
