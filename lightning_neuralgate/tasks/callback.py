"""`TaskMetricsCallback`: benchmarks during a training."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from tqdm.auto import tqdm
from typing_extensions import override

from lightning_neuralgate.evaluation.callback import PeriodicEvaluationCallback, shows_progress
from lightning_neuralgate.hf.decoder import find_hf_model
from lightning_neuralgate.metrics.functional import RefusalVariant
from lightning_neuralgate.tasks.account import Account
from lightning_neuralgate.tasks.item import AnsweredItem
from lightning_neuralgate.tasks.questions import QuestionBatches, Survey, TaskQuestions
from lightning_neuralgate.tasks.runner import Answering
from lightning_neuralgate.tasks.scores import SHOWN
from lightning_neuralgate.tasks.scoring import tally_answers
from lightning_neuralgate.tasks.verdicts import KeywordListJudge


class TaskMetricsCallback(PeriodicEvaluationCallback):
    """Asks benchmark questions before, every few optimizer steps of, and after a training, and logs the figures.

    `tasks/TASK/FIGURE`, for the figures that `neuralgate eval --tasks` prints, go to all loggers of the Trainer, over its
    number of optimizer steps, and into `trainer.callback_metrics`. Several processes share the questions; each counts once.
    The training itself stays what it would be, to the bit.

    Args:
        questions: what to ask; its `limit` keeps a measurement short.
        processor: the model's processor.
        every_n_steps: optimizer steps between two measurements; 0: only before and after the training.
        answering: how to answer; greedy, 20 tokens, 8 at once when left out.
        variant: the keyword list that says what a refusal is, see `metrics.functional.is_refusal`.

    Attributes:
        history: (optimizer steps, name -> value) of each measurement.
        accounts: task -> what became of its questions in the last measurement; under a limit fewer are asked than available.

    Raises:
        DataFormatError: when the training starts: a broken item under `stop`.

    Example:
        >>> from lightning_neuralgate.tasks.item import TaskItem
        >>> def source(broken):
        ...     yield TaskItem("pope", "1", b"", "a.png", "Is there a dog?", "yes")
        >>> TaskMetricsCallback(TaskQuestions({"pope": source}, limit=40), processor=None, every_n_steps=50).state_key
        "TaskMetricsCallback{'tasks': ['pope']}"
    """

    def __init__(
        self,
        questions: TaskQuestions,
        processor: Any,
        every_n_steps: int = 100,
        answering: Answering | None = None,
        variant: RefusalVariant = "prefix",
    ) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps must not be negative, got {every_n_steps}")
        super().__init__(every_n_steps)
        self.questions, self.processor = questions, processor
        self.refusals = KeywordListJudge(variant)
        self.answering = answering or Answering(max_new_tokens=20)
        self.accounts: dict[str, Account] = {}
        self._survey: Survey | None = None

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(tasks=sorted(self.questions.sources))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        survey = self._survey = self.questions.survey()
        for task, asked in survey.counts.items():
            if asked < survey.available[task]:
                rank_zero_info(f"tasks/{task}: figures of {asked} of {survey.available[task]} questions, by the limit")
        super().on_train_start(trainer, pl_module)

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        figures: dict[str, float] = {}
        answers = self._answers(trainer, pl_module)
        self.accounts = self._told(Counter(one.task for one in answers))
        for task, tally in tally_answers(answers, self.refusals).items():
            told = {name: float(value) for name, value in tally.compute().items()}
            # what was not measured is NaN, such as MME's cognition without a question of it
            measured = [name for name in SHOWN[task] if name in told and not math.isnan(told[name])]
            figures |= {f"tasks/{task}/{name}": told[name] for name in measured}
        return figures

    def _told(self, answered: Counter[str]) -> dict[str, Account]:
        survey = self._survey or self.questions.survey()
        # every question is asked, so what has no answer was skipped
        return {
            task: Account(
                survey.available[task], asked, answered[task], survey.broken[task] + asked - answered[task], missing=0
            )
            for task, asked in survey.counts.items()
        }

    def _answers(self, trainer: Trainer, pl_module: LightningModule) -> list[AnsweredItem]:
        """The answers to all questions, whoever gave them."""
        model: Any = find_hf_model(pl_module)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        rank, world = trainer.global_rank, trainer.world_size
        batches = QuestionBatches(
            self.questions, self.processor, self.answering.batch_size, rank=rank, world=world
        ).loader()
        own: list[AnsweredItem] = []
        for batch in tqdm(batches, desc="tasks", leave=False, disable=not shows_progress(trainer), unit="batch"):
            told = self.answering.answers(model, tokenizer, batch, batch["pictures"])
            if batch["counted"]:
                rows = zip(batch["items"], told, batch["broken"], strict=True)
                own += [item.answered(answer) for item, answer, problem in rows if problem is None]
        if world == 1:
            return own
        parts: list[list[AnsweredItem]] = [[] for _ in range(world)]
        dist.all_gather_object(parts, own)
        return [one for part in parts for one in part]
