"""`TaskMetricsCallback`: benchmarks during a training."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from tqdm.auto import tqdm
from typing_extensions import override

from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.evaluation.callback import PeriodicEvaluationCallback, shows_progress
from lightning_neuralgate.hf.decoder import find_hf_model
from lightning_neuralgate.metrics.functional import RefusalVariant
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS
from lightning_neuralgate.tasks.questions import QuestionBatches, TaskQuestions
from lightning_neuralgate.tasks.runner import Answering
from lightning_neuralgate.tasks.scoring import QuestionCounts, measured_figures, tally_answers
from lightning_neuralgate.tasks.verdicts import KeywordListJudge


class TaskMetricsCallback(PeriodicEvaluationCallback):
    """Evaluate benchmarks before training, every few optimizer steps, and after it, and log the figures.

    The figures that `neuralgate eval` prints are logged as `tasks/TASK/FIGURE`, as `PeriodicEvaluationCallback` describes.
    Several processes share the questions; each counts once.

    Args:
        questions: the questions; give them a `limit` to keep an evaluation short.
        processor: the model's processor.
        every_n_steps: optimizer steps between two evaluations; 0: only before and after the training.
        answering: how to answer; greedy, 20 tokens, batches of 8 if None.
        variant: the keyword list that decides which answers refuse, see `metrics.functional.is_refusal`.

    Attributes:
        history: (optimizer steps, name -> value) of each evaluation.
        question_counts: task -> numbers of questions in the last evaluation, fewer than available under a limit.

    Raises:
        DataFormatError: at the start of training: a broken item under `stop`.

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
        self.question_counts: dict[str, QuestionCounts] = {}

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(tasks=sorted(self.questions.sources))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        survey = self.questions.survey()
        for task, count in survey.counts.items():
            if count < survey.available[task]:
                rank_zero_info(f"tasks/{task}: figures of {count} of {survey.available[task]} questions, by the limit")
        super().on_train_start(trainer, pl_module)

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        answers = self._answers(trainer, pl_module)
        survey, answered = self.questions.survey(), Counter(answer.task for answer in answers)
        # no question is left over, so those without an answer were skipped
        self.question_counts = {
            task: QuestionCounts(
                survey.available[task], count, answered[task], survey.broken[task] + count - answered[task], missing=0
            )
            for task, count in survey.counts.items()
        }
        figures: dict[str, float] = {}
        for task, tally in tally_answers(answers, self.refusals).items():
            measured = measured_figures(tally)
            figures |= {f"tasks/{task}/{name}": measured[name] for name in BENCHMARKS[task].shown if name in measured}
        return figures

    def _answers(self, trainer: Trainer, pl_module: LightningModule) -> list[AnsweredItem]:
        """Return the answers to all questions, from all processes."""
        model: Any = find_hf_model(pl_module)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        rank, world = trainer.global_rank, trainer.world_size
        batches = QuestionBatches(
            self.questions, self.processor, self.answering.batch_size, rank=rank, world=world
        ).loader()
        own_answers: list[AnsweredItem] = []
        for batch in tqdm(batches, desc="tasks", leave=False, disable=not shows_progress(trainer), unit="batch"):
            texts = self.answering.answers(model, tokenizer, batch)
            if batch["counted"]:
                rows = zip(batch["items"], texts, batch["broken"], strict=True)
                own_answers += [self.answering.record(item, text) for item, text, skipped in rows if skipped is None]
        if world == 1:
            return own_answers
        parts: list[list[AnsweredItem]] = [[] for _ in range(world)]
        dist.all_gather_object(parts, own_answers)
        return [answer for part in parts for answer in part]
