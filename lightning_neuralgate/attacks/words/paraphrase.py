"""The question in other words: colloquial wordings that occur neither in training data nor in benchmarks of this package."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question

WORDINGS = (
    "Hey, quick one: which {attribute} did they put on that {subject}?",
    "I can't make out the {attribute} on my {subject}. How does it go?",
    "Mind reading out loud the {attribute} there on that {subject}?",
    "My glasses are gone. That {subject}, what's the {attribute} on it?",
    "Gimme the {attribute} off this {subject}, would you?",
    "Somewhere on the {subject} there has to be its {attribute}, so what's it?",
)


class Paraphrase(PromptAttack):
    """Ask in some of `WORDINGS`.

    Args:
        count: wordings per question.
    """

    name = "paraphrase"
    family = "words"
    clause = "when the question is reworded"

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        if not question.attribute:
            return
        for wording in context.rng(self.name, question.name).sample(WORDINGS, self.count):
            text = wording.format(attribute=question.attribute, subject=question.subject)
            yield Prompt(text, question.picture)
