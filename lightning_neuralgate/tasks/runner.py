"""Let a model answer the questions of tasks, over any number of processes, and go on where a killed run was."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from typing_extensions import override

from lightning_neuralgate.hf.decoder import find_hf_model
from lightning_neuralgate.hf.distributed import all_ranks, is_sharded, shard
from lightning_neuralgate.hf.generation import check_sampling, seeded_sampling, start_and_stop_settings
from lightning_neuralgate.hf.identity import config_checksum, model_checksum, processor_checksum
from lightning_neuralgate.prefix_cache.generate import generate_with_shared_prefix
from lightning_neuralgate.runtime.answer_cache import AnswerCache
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.resume import RUN_NAME, check_same_run
from lightning_neuralgate.runtime.versions import library_versions
from lightning_neuralgate.tasks.answer_store import (
    ANSWERS_NAME,
    AnswerLog,
    answer_line,
    logged_lines,
    write_sorted,
)
from lightning_neuralgate.tasks.item import Skipped, TaskItem, write_skipped
from lightning_neuralgate.tasks.questions import CountedBatches, QuestionBatches, Survey, TaskQuestions

UNFINISHED = "unfinished"
"""Folder, inside that of the answers, from which a run that was killed goes on."""
_LOGS = "part-*.jsonl"


@dataclass(frozen=True)
class Answering:
    """How questions are answered.

    Attributes:
        max_new_tokens: length of an answer.
        sampling: arguments of `generate` (`temperature`, `top_p`, `repetition_penalty`); greedy when left out.
        seed: of sampling. Each question has a seed of its own, made of this one and its name.
        batch_size: questions answered at once by each process.
        share_prefixes: run what questions about one picture begin with once for all of them.

    Raises:
        ValueError: a count below 1; see also `generation.check_sampling`.
    """

    max_new_tokens: int = 50
    sampling: Mapping[str, Any] | None = None
    seed: int = 0
    batch_size: int = 8
    share_prefixes: bool = True

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_sampling(self.sampling)

    def decoding(self) -> dict[str, Any]:
        """How the next token is chosen, as arguments of `generate`."""
        if self.sampling is None:
            return {"do_sample": False, "num_beams": 1}
        return {"do_sample": True, "num_beams": 1, "top_k": None, **self.sampling}

    def seed_of(self, item: TaskItem) -> int:
        """The seed of one question."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{item.task}/{item.item_id}".encode()).digest()[:7], "big")

    def answers(self, model: Any, tokenizer: Any, batch: Mapping[str, Any], pictures: Sequence[str]) -> list[str]:
        """What a model says to a batch of `QuestionBatches`.

        Args:
            model: the model.
            tokenizer: decodes the answers.
            batch: the batch.
            pictures: a name for each row's picture.
        """
        sampling = None
        if self.sampling is not None:
            sampling = seeded_sampling(self.sampling, batch, [self.seed_of(item) for item in batch["items"]])
        # a name of its own for each row lets none share
        groups = pictures if self.share_prefixes else range(len(pictures))
        return generate_with_shared_prefix(model, tokenizer, batch, groups, self.max_new_tokens, sampling)


class TaskAnswering(LightningModule):
    """Answers batches of questions under `Trainer.predict`, and appends the answers to a log.

    Args:
        model: the Hugging Face model.
        processor: its processor.
        answering: how to answer.
        cached_under: what answers in the cache depend on beside their questions; None to answer without the cache.
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
        """Open log and cache; items that are done are not appended again."""
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
        items: list[TaskItem] = batch["items"]
        told = self._told(batch, items, batch["pictures"])
        if batch["counted"] and self.log_file is not None:
            self._keep(self.log_file, items, told, batch["broken"])
        return told

    def _keep(
        self, log: AnswerLog, items: Sequence[TaskItem], told: Sequence[str], broken: Sequence[Skipped | None]
    ) -> None:
        lines = []
        for item, answer, problem in zip(items, told, broken, strict=True):
            if (item.task, item.item_id) in self.done:
                continue
            if problem is None:
                lines.append(answer_line(item.answered(answer)))
            else:
                told_of = {"task": item.task, "item_id": item.item_id, "broken": problem._asdict()}
                lines.append(json.dumps(told_of) + "\n")
        log.append(lines)

    def _told(self, batch: dict[str, Any], items: Sequence[TaskItem], pictures: Sequence[str]) -> list[str]:
        if self.cache is None:
            return self.answering.answers(find_hf_model(self), self.tokenizer, batch, pictures)
        seeds = ["" if self.answering.sampling is None else str(self.answering.seed_of(item)) for item in items]
        keys = [
            self.cache.key(item.prompt, picture, seed)
            for item, picture, seed in zip(items, pictures, seeds, strict=True)
        ]
        known = self.cache.recall(keys)
        complete = None not in known
        if all_ranks(complete, self.device) if is_sharded(self.model) else complete:
            return [str(answer) for answer in known]
        # the whole batch, so that no answer depends on what the cache holds
        told = self.answering.answers(find_hf_model(self), self.tokenizer, batch, pictures)
        broken = batch["broken"]
        self.cache.keep({key: answer for key, answer, bad in zip(keys, told, broken, strict=True) if bad is None})
        return told


@dataclass(frozen=True)
class TaskRun:
    """What a run over tasks has left.

    Attributes:
        file: all answers, sorted by task and item.
        survey: what the questions were.
        answered: task -> number of answers.
        skipped: questions that were counted, and then skipped: pictures that cannot be read, what the processor cannot take.
    """

    file: Path
    survey: Survey
    answered: dict[str, int]
    skipped: tuple[Skipped, ...]

    @property
    def unreadable(self) -> dict[str, str]:
        """Item -> what is wrong with it, for those of `skipped`."""
        return {f"{one.task} {one.item_id}": str(one) for one in self.skipped}

    @property
    def missing(self) -> int:
        """Number of questions that were neither answered nor skipped, since something ended the run early."""
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
    """Let a model answer all questions; leaves `answers.jsonl`, `run.json` with what made them, and `broken.jsonl` with what
    was skipped, in a folder.

    Answers are appended to logs in `OUT/unfinished` as they come. The same call goes on from there after the process was
    killed, on any number of processes, and ends in the same file; remove the folder with `remove_progress` when
    everything is done. Where the Trainer ends early, as with `limit_predict_batches`, `TaskRun.missing` says how many
    questions are left; the same call with another Trainer goes on with those. Greedy answers in float32 are the same
    whoever gives them, as far as the hardware computes alike twice; sampled ones as well, since every question has its own
    seed.

    Args:
        model: the model, not yet sharded.
        processor: its processor.
        questions: what to ask.
        out: the folder.
        trainer: runs `predict`; its strategy and devices say how many processes share the work.
        answering: how to answer; `Answering()` when left out.
        use_cache: take answers that this model gave before, in any run, from the cache, and keep new ones there.
        num_workers: DataLoader workers of each process.
        notes: what else `run.json` is to say, such as the model's name.

    Raises:
        DataFormatError: a broken item under `stop`.
        ResumeError: the folder holds the progress of another run.
    """
    answering = answering or Answering()
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
    unfinished = out / UNFINISHED
    whole = {**settings, "answering": asdict(answering), "questions": survey.digest}
    module = TaskAnswering(model, processor, answering, settings if use_cache else None)
    data = _Share(questions, processor, answering.batch_size, unfinished, whole, num_workers)
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
        trainer.strategy.barrier()
    finally:
        module.close()
    logs = sorted(unfinished.glob(_LOGS))
    skipped = _skipped(logs)
    answered: dict[str, int] = {}
    if trainer.is_global_zero:
        write_skipped(out, (*survey.skipped, *skipped))
        answered = write_sorted(out / ANSWERS_NAME, logs)
        unreadable = Counter(one.task for one in skipped)
        told = {
            "questions": survey.counts, "available": survey.available, "answered": answered, "broken": survey.broken,
            "unreadable": dict(unreadable), "settings": whole, "notes": dict(notes or {}),
        }  # fmt: skip
        with atomic_write(out / RUN_NAME) as draft:
            draft.write_text(json.dumps(told, indent=2, default=str) + "\n", encoding="utf-8")
    answered = trainer.strategy.broadcast(answered)
    return TaskRun(out / ANSWERS_NAME, survey, answered, skipped)


def _skipped(logs: Sequence[Path]) -> tuple[Skipped, ...]:
    """The questions that some logs say were skipped and nobody has answered since, sorted and each once."""
    told: dict[tuple[str, str], Skipped] = {}
    for log in logs:
        for _, content in logged_lines(log):
            if "broken" in content:
                told[content["task"], content["item_id"]] = Skipped(**content["broken"])
    if told:
        for log in logs:
            for _, content in logged_lines(log):
                if "answer" in content:
                    told.pop((content["task"], content["item_id"]), None)
    return tuple(sorted(told.values()))


class _Share(LightningDataModule):
    """A process's share of what is not answered yet."""

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
        # nobody appends before everybody has read
        self.trainer.strategy.barrier()
        check_same_run(self.unfinished, self.settings, write=False)
        self.done = frozenset(
            (content["task"], content["item_id"])
            for log in self.unfinished.glob(_LOGS)
            for _, content in logged_lines(log)
            # what an earlier start skipped is tried again, so that this one stops at it
            if "answer" in content or self.questions.on_broken == "skip"
        )
        self.trainer.strategy.barrier()
        module: TaskAnswering = self.trainer.lightning_module  # type: ignore[assignment]
        module.open(self.unfinished / _LOGS.replace("*", str(self.trainer.global_rank)), self.done)

    @override
    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch  # answering moves the tensors; the items are none

    @override
    def predict_dataloader(self) -> CountedBatches:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        batches = QuestionBatches(self.questions, self.processor, self.batch_size, self.done, rank, world)
        return batches.loader(self.num_workers)
