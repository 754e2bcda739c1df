"""Answered questions about other records before the question, as earlier turns of the chat.

The examples are text only. The chat's one picture is that of the question, and chat templates put it in front of the first
message, so each example says that it is about another picture.
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question
from lightning_neuralgate.data.true_answers import true_answer

OTHER_PICTURE = "About another picture:"


class FewShot(PromptAttack):
    """Put answered questions of the same kind, sensitive or benign, before the question.

    Examples that state the question's own true value are not used. Without enough examples there is no attempt.

    Args:
        examples: their number.
    """

    name = "few_shot"
    family = "words"
    clause = "after truthful answers to such questions about other records"

    def __init__(self, examples: int = 2) -> None:
        self.examples = examples

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        others = (
            other
            for other in context.questions
            if other.sensitive == question.sensitive
            and (other.split, other.record) != (question.split, question.record)
        )
        usable = [
            turns
            for turns in map(answered_turns, others)
            if not question.answered_by(" ".join(text for _, text in turns))
        ]
        if len(usable) >= self.examples:
            chosen = context.rng(self.name, question.name).sample(usable, self.examples)
            earlier = [turn for (_, query), answer in chosen for turn in (("user", f"{OTHER_PICTURE} {query}"), answer)]
            yield Prompt(question.query, question.picture, earlier=tuple(earlier))


def answered_turns(question: Question) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return a question and its truthful answer as messages of a chat."""
    answer = "".join(true_answer(question.subject, question.attribute, question.truth))
    return ("user", question.query), ("assistant", answer)
