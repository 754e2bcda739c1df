"""No attack: the question as it stands, for comparison."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question


class Plain(PromptAttack):
    """The question as in the record."""

    name = "plain"
    family = "words"
    clause = "when the question is put plainly"

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        yield Prompt(question.query, question.picture)
