from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.tasks.answer_store import read_answered
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS
from lightning_neuralgate.tasks.callback import TaskMetricsCallback
from lightning_neuralgate.tasks.runner import Answering
from lightning_neuralgate.tasks.scoring import QuestionCounts, tally_answers
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import UserModule, datamodule, train
from tests.tasks.runs import answer, questions_in, write_data

ANSWERING = Answering(max_new_tokens=4, batch_size=3)


def test_figures_equal_those_of_the_runner(splits: RecordSplits, tmp_path: Path) -> None:
    data = write_data(tmp_path / "tasks")
    callback = TaskMetricsCallback(questions_in(data, limit=4), tiny_processor(), 2, ANSWERING)
    module = UserModule(tiny_llava(), lr=2.0)
    logger = CSVLogger(tmp_path / "logs", name="", version="")
    trainer = train(module, datamodule(splits, pairs_per_batch=1), callback, max_steps=5, logger=logger)
    assert [step for step, _ in callback.history] == [0, 2, 4, 5]
    run = answer(
        data, tmp_path / "out", model=module.network, questions=questions_in(data, limit=4), answering=ANSWERING
    )
    expected = {
        f"tasks/{task}/{name}": float(tally.compute()[name])
        for task, tally in tally_answers(read_answered(run.file)).items()
        for name in BENCHMARKS[task].shown
        if name in tally.compute() and not torch.isnan(torch.tensor(tally.compute()[name]))
    }
    assert callback.history[-1][1] == expected
    assert {"tasks/pope/accuracy", "tasks/mme/perception", "tasks/scienceqa/refused"} <= expected.keys()
    assert "tasks/mme/cognition" not in expected
    assert callback.question_counts["pope"] == QuestionCounts(available=5, asked=4, answered=4, skipped=0, missing=0)
    with (tmp_path / "logs" / "metrics.csv").open() as lines:
        logged = [row for row in csv.DictReader(lines) if row["tasks/pope/accuracy"]]
    assert [int(row["step"]) for row in logged] == [0, 2, 4, 5]
    assert {name: float(logged[-1][name]) for name in expected} == pytest.approx(expected)
    assert float(trainer.callback_metrics["tasks/pope/accuracy"]) == pytest.approx(expected["tasks/pope/accuracy"])


def test_the_training_is_unchanged(splits: RecordSplits, tmp_path: Path) -> None:
    questions = questions_in(write_data(tmp_path / "tasks"))
    weights = []
    sampled = Answering(max_new_tokens=3, sampling={"top_p": 0.9})
    for callbacks in ((), (TaskMetricsCallback(questions, tiny_processor(), 1, sampled),)):
        torch.manual_seed(0)
        module = UserModule(tiny_llava(), lr=0.5)
        train(module, datamodule(splits, pairs_per_batch=1), *callbacks, max_steps=3)
        weights.append(find_decoder(module.network).output_projection(1).weight)
    assert torch.equal(*weights)  # type: ignore[arg-type]


def test_pictures_that_cannot_be_read(splits: RecordSplits, tmp_path: Path) -> None:
    data = write_data(tmp_path / "tasks")
    for file in (data / "mllmguard" / "bias" / "imgs").iterdir():
        file.write_bytes(b"none")
    module = UserModule(tiny_llava())
    stopping = TaskMetricsCallback(questions_in(data), tiny_processor(), 0, ANSWERING)
    with pytest.raises(DataFormatError, match=r"0\.png cannot be read"):
        train(module, datamodule(splits), stopping, max_steps=1)
    skipping = TaskMetricsCallback(questions_in(data, on_broken="skip"), tiny_processor(), 0, ANSWERING)
    train(module, datamodule(splits), skipping, max_steps=1)
    assert len(skipping.history) == 2
    assert skipping.question_counts["mllmguard"] == (4, 4, 2, 2, 0)
    with pytest.raises(ValueError, match="every_n_steps must not be negative"):
        TaskMetricsCallback(questions_in(data), tiny_processor(), -1)
