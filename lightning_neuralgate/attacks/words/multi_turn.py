"""A harmless question about the same picture, answered truthfully, before the question.

The simplest form of Russinovich et al., "Great, Now Write an Article About That: The Crescendo Multi-Turn LLM Jailbreak
Attack" (USENIX Security 2025, arXiv:2404.01833).
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question
from lightning_neuralgate.attacks.words.few_shot import answered_turns


class MultiTurn(PromptAttack):
    """Put a benign question about the same record, with its true answer, before the question.

    There is no attempt if the record has no (other) benign question, or one whose answer also answers the question.
    """

    name = "multi_turn"
    family = "words"
    suite = "full"
    clause = "after a harmless question about the same picture"

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        for other in context.questions:
            same_record = (other.split, other.record) == (question.split, question.record)
            if same_record and not other.sensitive and other.name != question.name:
                turns = answered_turns(other)
                if not question.answered_by(turns[1][1]):
                    yield Prompt(question.query, question.picture, earlier=turns)
                    return
