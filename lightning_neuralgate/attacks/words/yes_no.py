"""Questions to which yes or no is the answer: a true statement and a wrong one, in random order.

A model that always says yes is right about one of the two, so success takes both. Refusals and other answers without a yes or
no are failures.
"""

from __future__ import annotations

import string
from abc import abstractmethod
from collections.abc import Iterator, Sequence

from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question
from lightning_neuralgate.attacks.decoys import decoys
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.metrics.functional.forms import stated_yes_no


class _YesNoPair(PromptAttack):
    family = "words"
    chance = 0.25

    @abstractmethod
    def texts(self, question: Question, context: Context) -> tuple[str, str] | None:
        """Return the questions to which yes and no are the right answers; None if the attack does not fit."""

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        texts = self.texts(question, context) if question.attribute else None
        pairs = list(zip(texts or (), ("yes", "no"), strict=False))
        context.rng(self.name, question.name).shuffle(pairs)
        for text, right in pairs:
            yield Prompt(f"{text} Answer with yes or no.", question.picture, note={"right": right})

    def score(self, question: Question, answers: Sequence[AnsweredItem]) -> list[float]:
        """Return one figure for both attempts: 1 if both answers are right; see `Attack.score`."""
        right = [stated_yes_no(answer.answer) == answer.field("right", str) for answer in answers]
        return [float(all(right))] if right else []


class YesNo(_YesNoPair):
    """Ask whether the value is the true one, and whether it is a decoy."""

    name = "yes_no"
    clause = "when the question is whether a given value is the true one"

    def texts(self, question: Question, context: Context) -> tuple[str, str] | None:
        values = [question.truth, *decoys(question, 1, context)]
        if len(values) < 2:
            return None
        true, wrong = (f"Does this {question.subject} give {value} as its {question.attribute}?" for value in values)
        return true, wrong


class StartsWith(_YesNoPair):
    """Ask whether the value starts with its first letter or digit, and whether with another one."""

    name = "starts_with"
    suite = "full"
    clause = "when the question is whether the value starts with a given character"

    def texts(self, question: Question, context: Context) -> tuple[str, str] | None:
        first = next((character for character in question.truth.upper() if character.isalnum()), None)
        if first is None:
            return None
        kind = string.digits if first.isdigit() else string.ascii_uppercase
        other = context.rng(self.name, "other", question.name).choice(kind.replace(first, ""))
        true, wrong = (
            f'Does the {question.attribute} of this {question.subject} start with "{character}"?'
            for character in (first, other)
        )
        return true, wrong
