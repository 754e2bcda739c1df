"""Run attacks on a model: generate the answers, change weights, measure probabilities, and resume after an interruption.

OUT/MODEL/PASS/answers.jsonl    the answers of all attacks with the same decoding, or of one attack on the weights
OUT/pictures/                   the pictures that attacks draw
OUT/MODEL/unfinished/           figures of the attacks that are done, until the run is over
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer

from lightning_neuralgate.attacks.base import (
    Attack,
    AttackNotApplicable,
    Context,
    PromptAttack,
    StateAttack,
    WeightAttack,
)
from lightning_neuralgate.attacks.words.plain import Plain
from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.hf.distributed import is_sharded
from lightning_neuralgate.hf.identity import model_checksum
from lightning_neuralgate.runtime.resume import check_same_run
from lightning_neuralgate.runtime.run_folder import UNFINISHED, remove_progress, run_folder
from lightning_neuralgate.tasks.answer_store import AnswerLog, logged_lines, read_answered
from lightning_neuralgate.tasks.item import BrokenItems, Place, TaskItem
from lightning_neuralgate.tasks.questions import TaskQuestions
from lightning_neuralgate.tasks.runner import Answering, answer_tasks

TASK = "attacks"
_FIGURES = "part-figures.jsonl"


@dataclass(frozen=True)
class ModelAnswers:
    """What a model did under attack.

    Attributes:
        answers: attack -> question's name -> answers to all attempts, in their order.
        figures: attack -> further figures, such as the share of weights that an attack changed.
        measured: attack of probabilities -> one value per question, None where it could not be measured.
        not_applicable: attack -> reason why it was not made.
    """

    answers: dict[str, dict[str, list[AnsweredItem]]]
    figures: dict[str, dict[str, float]]
    measured: dict[str, list[float | None]]
    not_applicable: dict[str, str]


def prompt_items(attacks: Sequence[PromptAttack], context: Context) -> Iterator[TaskItem]:
    """Yield the attempts of attacks on all questions, those about one picture one after the other.

    Args:
        attacks: attacks with the same decoding.
        context: the run.
    """
    for _, questions in groupby(context.questions, key=lambda question: (question.split, question.record)):
        attempts = (
            (attack, question, list(attack.prompts(question, context))) for question in questions for attack in attacks
        )
        items = [
            TaskItem(
                task=TASK,
                item_id=f"{attack.name}/{question.name}/{number:02d}",
                picture=prompt.picture,
                image="" if prompt.picture is None else prompt.picture.name,
                prompt=prompt.text,
                truth=question.truth,
                fields={**prompt.note, "attack": attack.name, "question": question.name, "attempts": len(prompts)},
                earlier=prompt.earlier,
                opening=prompt.opening,
                place=Place("attacks", f"{attack.name} on {question.name}"),
            )
            for attack, question, prompts in attempts
            for number, prompt in enumerate(prompts)
        ]
        # the prefix that questions about one picture share is computed once per batch
        first = {picture: place for place, picture in reversed(list(enumerate(item.picture for item in items)))}
        yield from sorted(items, key=lambda item: first[item.picture])


def passes(attacks: Sequence[PromptAttack]) -> dict[str, list[PromptAttack]]:
    """Group attacks by decoding: name of the pass -> attacks.

    Example:
        >>> from lightning_neuralgate.attacks import ATTACKS
        >>> list(passes([ATTACKS["plain"], ATTACKS["prefill_3"]]))
        ['greedy-24']
    """
    groups: dict[str, list[PromptAttack]] = {}
    for attack in attacks:
        drawn = "-".join(f"{name}-{value}" for name, value in sorted((attack.sampling or {}).items()))
        groups.setdefault(f"{drawn or 'greedy'}-{attack.max_new_tokens}", []).append(attack)
    return groups


class AttackRun:
    """Attacks on one model.

    Args:
        model: the model, not sharded.
        processor: its processor.
        attacks: the attacks.
        context: questions, pictures, and the unedited model, if there is one.
        out: folder of this model's answers.
        trainer: runs the generation.
        batch_size: questions per batch and process.
        use_cache: reuse this model's answers from earlier runs, and store new ones.
        seed: seed of sampling.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        attacks: Sequence[Attack],
        context: Context,
        out: Path,
        trainer: Trainer,
        batch_size: int = 24,
        use_cache: bool = True,
        seed: int = 0,
    ) -> None:
        self.model, self.processor, self.attacks, self.out, self.trainer = model, processor, attacks, out, trainer
        self.context = replace(context, tokenizer=getattr(processor, "tokenizer", processor))
        self.batch_size, self.use_cache, self.seed = batch_size, use_cache, seed
        self.found = ModelAnswers({}, {}, {}, {})

    def run(self) -> ModelAnswers:
        """Make all attacks.

        Raises:
            ResumeError: the folder holds the progress of another run, or another run uses it.
            ModelLayoutError: the model's chat template does not fit the plain questions.
        """
        with run_folder(self.out / UNFINISHED, self.trainer.is_global_zero):
            if self.trainer.is_global_zero:
                names = [question.name for question in self.context.questions]
                check_same_run(self.out / UNFINISHED, {"model": model_checksum(self.model), "questions": names})
            self._run()
        return self.found

    def _run(self) -> None:
        usable = [attack for attack in self.attacks if isinstance(attack, PromptAttack) and self._fits(attack)]
        for name, attacks in passes(usable).items():
            self._answer(name, attacks)
        for attack in self.attacks:
            if isinstance(attack, PromptAttack):
                continue
            try:
                if is_sharded(self.model):
                    raise AttackNotApplicable("it needs a model that is not sharded")
                self.model.to(self.trainer.strategy.root_device)
                if isinstance(attack, WeightAttack):
                    self._change_weights(attack)
                elif isinstance(attack, StateAttack):
                    self._measure(attack)
            except AttackNotApplicable as error:
                self.found.not_applicable[attack.name] = str(error)

    def _fits(self, attack: PromptAttack) -> bool:
        """Return whether the processor takes the first attempt of an attack, and note the reason if not."""
        item = next(prompt_items([attack], self.context), None)
        if item is None:
            self.found.not_applicable[attack.name] = "it fits none of the questions"
            return False
        row = QueryRow(item.prompt, "benign", item.picture, earlier=item.earlier, opening=item.opening)
        try:
            PrivacyPairCollator(self.processor)([row])
        except ModelLayoutError as error:
            if isinstance(attack, Plain):
                raise
            self.found.not_applicable[attack.name] = f"the chat template does not take it: {error}"
            return False
        return True

    def remove_progress(self) -> None:
        """Remove what interrupted runs resume from; to be called when all models are done."""
        for folder in (*sorted(self.out.glob(f"*/{UNFINISHED}")), self.out / UNFINISHED):
            remove_progress(folder)

    def _answer(self, name: str, attacks: Sequence[PromptAttack], changed_by: WeightAttack | None = None) -> None:
        """Generate the answers of one pass, and file them under the names of their attacks, or of one on the weights."""
        context = self.context
        if changed_by is not None:
            scored = [question for question in context.questions if not changed_by.skips(question, context)]
            context = replace(context, questions=scored)

        def read(broken: BrokenItems) -> Iterator[TaskItem]:
            return prompt_items(attacks, context)

        first = attacks[0]
        answering = Answering(first.max_new_tokens, first.sampling, self.seed, self.batch_size)
        questions = TaskQuestions({TASK: read}, on_broken="skip")
        answer_tasks(self.model, self.processor, questions, self.out / name, self.trainer, answering, self.use_cache)
        self._read(name, changed_by.name if changed_by else None)

    def _read(self, name: str, filed_under: str | None) -> None:
        self.trainer.strategy.barrier()
        for item in read_answered(self.out / name):
            by_question = self.found.answers.setdefault(filed_under or item.fields["attack"], {})
            by_question.setdefault(item.fields["question"], []).append(item)

    def _change_weights(self, attack: WeightAttack) -> None:
        figures = self._recall(attack.name)
        if figures is None:
            with attack.changed(self.model, self.processor, self.context) as changed:
                self._answer(attack.name, [Plain()], attack)
                figures = dict(changed)
            self._store(attack.name, figures)
        else:
            self._read(attack.name, attack.name)
        self.found.figures[attack.name] = figures

    def _measure(self, attack: StateAttack) -> None:
        known = self._recall(attack.name)
        if known is None:
            known = {"values": self._shared_values(attack)}
            self._store(attack.name, known)
        self.found.measured[attack.name] = known["values"]

    def _shared_values(self, attack: StateAttack) -> list[float | None]:
        """Return one value per question; processes share the questions."""
        questions, rank, world = self.context.questions, self.trainer.global_rank, self.trainer.world_size
        values = attack.measure(self.model, self.processor, questions[rank::world], self.context)
        if world == 1:
            return values
        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, values)
        merged: list[float | None] = [None] * len(questions)
        for other, part in enumerate(parts):
            merged[other::world] = part
        return merged

    def _recall(self, name: str) -> dict[str, Any] | None:
        """Return the figures of an attack that an interrupted run has completed."""
        log = self.out / UNFINISHED / _FIGURES
        found = None
        if self.trainer.is_global_zero and log.is_file():
            found = next((content["figures"] for _, content in logged_lines(log) if content["item_id"] == name), None)
        return self.trainer.strategy.broadcast(found)

    def _store(self, name: str, figures: Mapping[str, Any]) -> None:
        if self.trainer.is_global_zero:
            log = AnswerLog(self.out / UNFINISHED / _FIGURES)
            log.append([json.dumps({"task": TASK, "item_id": name, "figures": dict(figures)}) + "\n"])
            log.close()
