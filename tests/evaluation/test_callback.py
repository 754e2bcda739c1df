from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import DataFormatError, UnsupportedSetupError
from lightning_neuralgate.evaluation.callback import RefusalMetricsCallback
from lightning_neuralgate.evaluation.rates import summarize
from lightning_neuralgate.evaluation.run import evaluate
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import UserModule, datamodule, train

NAMES = ("rta_sensitive", "answer_rate_benign", "eta", "leak_rate", "benign_accuracy")


def measured(splits: RecordSplits, **options: Any) -> RefusalMetricsCallback:
    tested = {"test": splits.test, "unseen": splits.unseen_subjects}
    return RefusalMetricsCallback(tested, tiny_processor(), **{"every_n_steps": 2, "max_new_tokens": 4, **options})


def run(splits: RecordSplits, *callbacks: Callback, **options: Any) -> tuple[UserModule, Any]:
    module = UserModule(tiny_llava(), lr=2.0)
    data = datamodule(splits, pairs_per_batch=1)
    trainer = train(module, data, *callbacks, **{"max_steps": 5, **options})
    return module, trainer


def test_somebodys_training_is_measured_before_during_and_after(splits: RecordSplits, tmp_path: Path) -> None:
    callback = measured(splits)
    module, _ = run(splits, callback, logger=CSVLogger(tmp_path, name="", version=""))
    assert [step for step, _ in callback.history] == [0, 2, 4, 5]
    names = {f"held_out/{split}/{name}" for split in ("test", "unseen") for name in NAMES}
    assert all(values.keys() == names for _, values in callback.history)
    with (tmp_path / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["held_out/test/eta"]]
    assert [int(row["step"]) for row in rows] == [0, 2, 4, 5]
    for row, (_, values) in zip(rows, callback.history, strict=True):
        assert {name: float(row[name]) for name in names} == pytest.approx(values)

    answers = evaluate(
        module.network, tiny_processor(), {"test": splits.test, "unseen": splits.unseen_subjects},
        splits.test[0].image.parent, "trained", max_new_tokens=4,
    )  # fmt: skip
    for split, rates in summarize(answers).items():
        last = {name: callback.history[-1][1][f"held_out/{split}/{name}"] for name in NAMES}
        assert last == pytest.approx({name: rates[name] for name in NAMES})


def test_the_training_stays_what_it_was(splits: RecordSplits) -> None:
    class Noisy(UserModule):
        """Draws a random number in every step, and has a part in eval mode."""

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
            assert self.training
            assert not self.network.model.vision_tower.training  # type: ignore[union-attr]
            return super().training_step(batch, batch_idx) * (1 + torch.rand(()))

    weights = []
    for callbacks in ((), (measured(splits, every_n_steps=1),)):
        torch.manual_seed(0)
        module = Noisy(tiny_llava(), lr=0.5)
        module.network.train()
        module.network.model.vision_tower.eval()  # type: ignore[union-attr]
        train(module, datamodule(splits, pairs_per_batch=1), *callbacks, max_steps=4, accumulate_grad_batches=2)
        weights.append(find_decoder(module.network).output_projection(1).weight)
    assert torch.equal(*weights)  # type: ignore[arg-type]


def test_other_callbacks_can_watch_it(splits: RecordSplits) -> None:
    stop = EarlyStopping("held_out/test/eta", mode="max", patience=0, check_on_train_epoch_end=True)
    _, trainer = run(splits, measured(splits, every_n_steps=1), stop, max_steps=-1, max_epochs=5)
    assert trainer.callback_metrics["held_out/test/eta"] == stop.best_score
    assert stop.stopped_epoch == 1


def test_what_was_measured_last_can_be_watched(splits: RecordSplits) -> None:
    callback = measured(splits, every_n_steps=3)
    _, trainer = run(splits, callback)
    assert {k: float(v) for k, v in trainer.callback_metrics.items()} == pytest.approx(callback.history[-1][1])
    run(splits, callback, max_steps=2)
    assert [step for step, _ in callback.history] == [0, 2], "another training is measured anew"


def test_at_most_so_many_queries(splits: RecordSplits) -> None:
    callback = measured(splits, limit=3, every_n_steps=0)
    run(splits, callback)
    assert [step for step, _ in callback.history] == [0, 5]
    rows = [row for record in (splits.unseen_subjects) for row in question_rows(record)][:3]
    sensitive = sum(row.role == "sensitive" for row in rows)
    assert int(callback.rates.answers.rta_sensitive.total) == sensitive
    assert int(callback.rates.answers.answer_rate_benign.total) == 3 - sensitive


def test_refuses_nonsense(splits: RecordSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_neuralgate.evaluation.callback.uses_fsdp1", lambda root: True)
    with pytest.raises(UnsupportedSetupError, match="cannot generate under FSDP1"):
        run(splits, measured(splits))
    with pytest.raises(DataFormatError, match="no held-out records to ask about in unseen"):
        RefusalMetricsCallback({"test": splits.test, "unseen": []}, tiny_processor())
    with pytest.raises(DataFormatError, match="no held-out records"):
        RefusalMetricsCallback({}, tiny_processor())
    with pytest.raises(ValueError, match="must be at least 1"):
        RefusalMetricsCallback({"test": splits.test}, tiny_processor(), limit=0)
