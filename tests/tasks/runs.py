"""All tasks, answered by a tiny model under a strategy.

    python -m tests.tasks.runs STRATEGY DATA OUT [--sample]

STRATEGY is `one`, `ddp` or `fsdp`; under torchrun, on several processes.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_neuralgate.hf.generation import PAPER_SAMPLING
from lightning_neuralgate.runtime.process import process_group_closed
from lightning_neuralgate.tasks.benchmarks.mllmguard import read_mllmguard
from lightning_neuralgate.tasks.benchmarks.mme import read_mme
from lightning_neuralgate.tasks.benchmarks.pope import read_pope
from lightning_neuralgate.tasks.benchmarks.scienceqa import read_scienceqa
from lightning_neuralgate.tasks.questions import TaskQuestions
from lightning_neuralgate.tasks.runner import Answering, TaskRun, answer_tasks
from tests.helpers.task_files import mllmguard_folder, mme_folder, parquet, pope_files, scienceqa_rows
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import QUIET


def write_data(folder: Path) -> Path:
    """21 questions of four tasks: 5 of POPE, 8 of MME, 4 of ScienceQA and 4 of MLLMGuard."""
    pope_files(folder / "pope", 5)
    mme_folder(folder / "mme")
    parquet(folder / "scienceqa" / "test.parquet", scienceqa_rows(5))
    mllmguard_folder(folder / "mllmguard")
    return folder


def questions_in(folder: Path, **options: Any) -> TaskQuestions:
    sources = {
        "pope": partial(read_pope, folder / "pope", images=folder / "pope" / "val2014"),
        "mme": partial(read_mme, folder / "mme"),
        "scienceqa": partial(read_scienceqa, folder / "scienceqa"),
        "mllmguard": partial(read_mllmguard, folder / "mllmguard"),
    }
    return TaskQuestions(sources, **options)


def trainer_of(strategy: str = "one") -> Trainer:
    kinds: dict[str, Any] = {"one": "auto", "ddp": "ddp", "fsdp": ModelParallelStrategy(2, 1)}
    return Trainer(**QUIET, devices=1 if strategy == "one" else 2, strategy=kinds[strategy])


def answer(folder: Path, out: Path, trainer: Trainer | None = None, **options: Any) -> TaskRun:
    """Answer what `write_data` has written."""
    questions = options.pop("questions", None) or questions_in(folder)
    model = options.pop("model", None) or tiny_llava()
    answering = options.pop("answering", None) or Answering(max_new_tokens=6, batch_size=3)
    return answer_tasks(model, tiny_processor(), questions, out, trainer or trainer_of(), answering, **options)


class Calls:
    """Counts calls of `generate`, and breaks off at one of them."""

    def __init__(self, model: Any, last: int | None = None) -> None:
        self.count, self.rows, generate = 0, 0, model.generate

        def counted(**inputs: Any) -> Any:
            if last is not None and self.count == last:
                raise KeyboardInterrupt
            self.count += 1
            self.rows += len(inputs["input_ids"])
            return generate(**inputs)

        model.generate = counted


if __name__ == "__main__":
    torch.set_num_threads(1)
    sampling = PAPER_SAMPLING if "--sample" in sys.argv else None
    with process_group_closed():
        answer(
            Path(sys.argv[2]), Path(sys.argv[3]), trainer_of(sys.argv[1]),
            answering=Answering(max_new_tokens=6, batch_size=3, sampling=sampling), use_cache=False,
        )  # fmt: skip
