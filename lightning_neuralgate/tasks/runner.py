"""Answer the questions of tasks with a model, on any number of processes, and resume interrupted runs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from typing_extensions import override

from lightning_neuralgate.evaluation.answers import AnsweredItem, answer_line
from lightning_neuralgate.evaluation.rates import UNTIL_DECIDED
from lightning_neuralgate.hf.decoder import find_hf_model
from lightning_neuralgate.hf.distributed import all_ranks, is_sharded, shard
from lightning_neuralgate.hf.generation import check_sampling, seeded_sampling, start_and_stop_settings
from lightning_neuralgate.hf.identity import config_checksum, model_checksum, processor_checksum
from lightning_neuralgate.metrics.functional import RefusalVariant, verdict_stands
from lightning_neuralgate.prefix_cache.generate import generate_with_shared_prefix
from lightning_neuralgate.runtime.answer_cache import AnswerCache
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.resume import check_same_run
from lightning_neuralgate.runtime.run_folder import RUN_NAME, UNFINISHED, run_folder
from lightning_neuralgate.runtime.versions import library_versions
from lightning_neuralgate.tasks.answer_store import (
    ANSWERS_NAME,
    AnswerLog,
    logged_lines,
    write_sorted,
)
from lightning_neuralgate.tasks.item import Skipped, TaskItem, write_skipped
from lightning_neuralgate.tasks.questions import CountedBatches, QuestionBatches, Survey, TaskQuestions

_LOGS = "part-*.jsonl"


@dataclass(frozen=True)
class Answering:
    """Settings of generation.

    Attributes:
        max_new_tokens: maximum length of an answer.
        sampling: arguments of `generate` (`temperature`, `top_p`, `repetition_penalty`); greedy if None.
        seed: seed of sampling; each question has its own, derived from this one and the question's name.
        batch_size: questions per batch and process.
        share_prefixes: compute the prefix that questions about one picture share only once.
        until_decided: end each answer as soon as the rest cannot change the verdict of this keyword list. Such answers give
            refusal rates alone; None for complete answers.

    Raises:
        ValueError: a count below 1; see also `generation.check_sampling`.
    """

    max_new_tokens: int = 50
    sampling: Mapping[str, Any] | None = None
    seed: int = 0
    batch_size: int = 8
    share_prefixes: bool = True
    until_decided: RefusalVariant | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_sampling(self.sampling)

    def decoding(self) -> dict[str, Any]:
        """Return the decoding strategy, as arguments of `generate`."""
        if self.sampling is None:
            return {"do_sample": False, "num_beams": 1}
        return {"do_sample": True, "num_beams": 1, "top_k": None, **self.sampling}

    def seed_of(self, item: TaskItem) -> int:
        """Return the seed of one question."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{item.task}/{item.item_id}".encode()).digest()[:7], "big")

    def answers(self, model: Any, tokenizer: Any, batch: Mapping[str, Any]) -> list[str]:
        """Generate the answers to a batch of `QuestionBatches`.

        Args:
            model: the model.
            tokenizer: decodes the answers.
            batch: the batch.
        """
        sampling = None
        if self.sampling is not None:
            sampling = seeded_sampling(self.sampling, batch, [self.seed_of(item) for item in batch["items"]])
        # rows with different identifiers share nothing
        groups = batch["pictures"] if self.share_prefixes else range(len(batch["pictures"]))
        until = None if self.until_decided is None else partial(verdict_stands, variant=self.until_decided)
        return generate_with_shared_prefix(model, tokenizer, batch, groups, self.max_new_tokens, sampling, until)

    def record(self, item: TaskItem, answer: str) -> AnsweredItem:
        """Return the record of an answer, which says if it may be cut short."""
        return item.answered(answer, **({} if self.until_decided is None else {UNTIL_DECIDED: self.until_decided}))


class TaskAnswering(LightningModule):
    """Answer batches of questions under `Trainer.predict`, and append the answers to a log.

    Args:
        model: the Hugging Face model.
        processor: its processor.
        answering: settings of generation.
        cached_under: the settings that cached answers depend on, apart from their questions; None for no cache.
    """

    def __init__(
        self, model: Any, processor: Any, answering: Answering, cached_under: Mapping[str, Any] | None
    ) -> None:
        super().__init__()
        self.model, self.answering, self.cached_under = model, answering, cached_under
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.cache: AnswerCache | None = None
        self.log_file: AnswerLog | None = None
        self.done: frozenset[tuple[str, str]] = frozenset()

    def open(self, log: Path, done: frozenset[tuple[str, str]]) -> None:
        """Open log and cache; items in `done` are not appended again."""
        self.done, self.log_file = done, AnswerLog(log)
        self.cache = None if self.cached_under is None else AnswerCache(self.cached_under)

    def close(self) -> None:
        """Close log and cache."""
        for opened in (self.log_file, self.cache):
            if opened is not None:
                opened.close()

    @override
    def configure_model(self) -> None:
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh)

    @override
    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        answers = self._answers(batch)
        if not batch["counted"] or self.log_file is None:
            return answers
        lines = []
        for item, answer, skipped in zip(batch["items"], answers, batch["broken"], strict=True):
            if (item.task, item.item_id) in self.done:
                continue
            if skipped is None:
                lines.append(answer_line(self.answering.record(item, answer)))
            else:
                line = {"task": item.task, "item_id": item.item_id, "broken": skipped._asdict()}
                lines.append(json.dumps(line) + "\n")
        self.log_file.append(lines)
        return answers

    def _answers(self, batch: dict[str, Any]) -> list[str]:
        if self.cache is None:
            return self.answering.answers(find_hf_model(self), self.tokenizer, batch)
        seeded = self.answering.sampling is not None
        keys = [
            self.cache.key(item.request, picture, str(self.answering.seed_of(item)) if seeded else "")
            for item, picture in zip(batch["items"], batch["pictures"], strict=True)
        ]
        known = self.cache.recall(keys)
        complete = None not in known
        if all_ranks(complete, self.device) if is_sharded(self.model) else complete:
            return [str(answer) for answer in known]
        # the full batch, so that no answer depends on the content of the cache
        answers = self.answering.answers(find_hf_model(self), self.tokenizer, batch)
        rows = zip(keys, answers, batch["broken"], strict=True)
        self.cache.keep({key: answer for key, answer, skipped in rows if skipped is None})
        return answers


@dataclass(frozen=True)
class TaskRun:
    """Result of a run over tasks.

    Attributes:
        file: all answers, sorted by task and item.
        survey: the questions.
        answered: task -> number of answers.
        skipped: questions that were counted and then skipped: unreadable pictures, inputs that the processor rejects.
    """

    file: Path
    survey: Survey
    answered: dict[str, int]
    skipped: tuple[Skipped, ...]

    @property
    def unreadable(self) -> dict[str, str]:
        """Item -> error, for those in `skipped`."""
        return {f"{item.task} {item.item_id}": str(item) for item in self.skipped}

    @property
    def missing(self) -> int:
        """Number of questions that were neither answered nor skipped, because the run ended early."""
        return self.survey.total - sum(self.answered.values()) - len(self.skipped)


def answer_tasks(
    model: Any,
    processor: Any,
    questions: TaskQuestions,
    out: Path,
    trainer: Trainer,
    answering: Answering | None = None,
    use_cache: bool = True,
    num_workers: int = 0,
    notes: Mapping[str, Any] | None = None,
) -> TaskRun:
    """Answer all questions with a model.

    Writes `answers.jsonl`, `run.json` (settings and counts), and `broken.jsonl` (skipped items) into a folder.

    Answers are appended to logs in `OUT/unfinished` batch by batch. After an interruption the same call resumes from there,
    on any number of processes, and produces the same file; delete the folder with `remove_progress` afterwards.
    If the Trainer ends early, as with `limit_predict_batches`, `TaskRun.missing` is the number of remaining questions, and
    the same call with another Trainer answers those. Greedy answers in float32 do not depend on the number of processes, as
    far as the hardware is deterministic; neither do sampled ones, because every question has its own seed.

    Args:
        model: the model, not yet sharded.
        processor: its processor.
        questions: the questions.
        out: the folder.
        trainer: runs `predict`; its strategy and devices determine the processes that share the work.
        answering: settings of generation; `Answering()` if None.
        use_cache: reuse this model's answers from earlier runs, and cache new ones.
        num_workers: DataLoader workers per process.
        notes: further entries of `run.json`, such as the model's name.

    Returns:
        The files and counts.

    Raises:
        DataFormatError: a broken item under `stop`.
        ResumeError: the folder holds the progress of another run, or another run uses it.
    """
    with run_folder(out / UNFINISHED, trainer.is_global_zero):
        return _answer_tasks(
            model, processor, questions, out, trainer, answering or Answering(), use_cache, num_workers, notes or {}
        )


def _answer_tasks(
    model: Any,
    processor: Any,
    questions: TaskQuestions,
    out: Path,
    trainer: Trainer,
    answering: Answering,
    use_cache: bool,
    num_workers: int,
    notes: Mapping[str, Any],
) -> TaskRun:
    survey = questions.survey()
    settings = {
        "model": model_checksum(model),
        "config": config_checksum(model),
        "processor": processor_checksum(processor),
        "dtype": str(next(model.parameters()).dtype),
        "precision": trainer.precision,
        "max_new_tokens": answering.max_new_tokens,
        "generation": {**answering.decoding(), **start_and_stop_settings(model)},
        **library_versions(),
    }
    if answering.until_decided is not None:
        settings["until_decided"] = answering.until_decided
    unfinished = out / UNFINISHED
    run_settings = {**settings, "answering": asdict(answering), "questions": survey.digest}
    module = TaskAnswering(model, processor, answering, settings if use_cache else None)
    data = _RemainingQuestions(questions, processor, answering.batch_size, unfinished, run_settings, num_workers)
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
        if module.log_file is not None:
            module.log_file.check()
        trainer.strategy.barrier()
    finally:
        module.close()
    logs = sorted(unfinished.glob(_LOGS))
    skipped = _skipped(logs)
    answered: dict[str, int] = {}
    if trainer.is_global_zero:
        write_skipped(out, (*survey.skipped, *skipped))
        answered = write_sorted(out / ANSWERS_NAME, logs)
        unreadable = Counter(item.task for item in skipped)
        content = {
            "questions": survey.counts, "available": survey.available, "answered": answered, "broken": survey.broken,
            "unreadable": dict(unreadable), "settings": run_settings, "notes": dict(notes),
        }  # fmt: skip
        with atomic_write(out / RUN_NAME) as draft:
            draft.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    answered = trainer.strategy.broadcast(answered)
    return TaskRun(out / ANSWERS_NAME, survey, answered, skipped)


def _skipped(logs: Sequence[Path]) -> tuple[Skipped, ...]:
    """Return the questions that are skipped in some log and answered in none, sorted."""
    skipped: dict[tuple[str, str], Skipped] = {}
    for log in logs:
        for _, content in logged_lines(log):
            if "broken" in content:
                skipped[content["task"], content["item_id"]] = Skipped(**content["broken"])
    if skipped:
        for log in logs:
            for _, content in logged_lines(log):
                if "answer" in content:
                    skipped.pop((content["task"], content["item_id"]), None)
    return tuple(sorted(skipped.values()))


class _RemainingQuestions(LightningDataModule):
    """A process's share of the questions that are not answered yet."""

    def __init__(
        self,
        questions: TaskQuestions,
        processor: Any,
        batch_size: int,
        unfinished: Path,
        settings: Mapping[str, Any],
        num_workers: int,
    ) -> None:
        super().__init__()
        self.questions, self.processor, self.batch_size = questions, processor, batch_size
        self.unfinished, self.settings, self.num_workers = unfinished, settings, num_workers
        self.done: frozenset[tuple[str, str]] = frozenset()

    @override
    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        if self.trainer.is_global_zero:
            check_same_run(self.unfinished, self.settings)
        # no process appends before all have read the logs
        self.trainer.strategy.barrier()
        check_same_run(self.unfinished, self.settings, write=False)
        self.done = frozenset(
            (content["task"], content["item_id"])
            for log in self.unfinished.glob(_LOGS)
            for _, content in logged_lines(log)
            # under `stop`, retry items that an earlier run skipped, so that this one raises their errors
            if "answer" in content or self.questions.on_broken == "skip"
        )
        self.trainer.strategy.barrier()
        module: TaskAnswering = self.trainer.lightning_module  # type: ignore[assignment]
        module.open(self.unfinished / _LOGS.replace("*", str(self.trainer.global_rank)), self.done)

    @override
    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch  # generation moves the tensors; items are not tensors

    @override
    def predict_dataloader(self) -> CountedBatches:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        batches = QuestionBatches(self.questions, self.processor, self.batch_size, self.done, rank, world)
        return batches.loader(self.num_workers)
