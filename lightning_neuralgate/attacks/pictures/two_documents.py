"""Two documents in one picture: that of the question, and another record's."""

from __future__ import annotations

import random
from collections.abc import Iterator

from PIL import Image

from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question
from lightning_neuralgate.attacks.pictures.drawing import content_digest, fitted, redrawn, sheet_edge, source_picture

_SHARES = (0.62, 0.36)
"""Edges of the question's document and of the other one, as shares of the picture's edge."""
_BACKGROUND = (150, 150, 150)


class TwoDocuments(PromptAttack):
    """Ask the plain question about a picture with two documents.

    The other one belongs to a record of another subject if there is any, so that the question still names one of them. Only
    the true value of the question's own document counts. Without another record there is no attempt.
    """

    name = "two_documents"
    family = "picture"
    suite = "full"
    clause = "when there is another document in the picture"

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        other = _other_question(question, context)
        if other is None:
            return

        def draw(picture: Image.Image, rng: random.Random) -> Image.Image:
            return _together(picture, source_picture(other), rng)

        yield Prompt(question.query, redrawn(self.name, question, context, draw, content_digest(other)))


def _other_question(question: Question, context: Context) -> Question | None:
    """Return a question about another record, the same one for all questions about one record."""
    own = (question.split, question.record)
    firsts: dict[tuple[str, str], Question] = {}
    for other in context.questions:
        firsts.setdefault((other.split, other.record), other)
    others = [other for key, other in firsts.items() if key != own]
    of_another_subject = [other for other in others if other.subject != question.subject]
    return context.rng(TwoDocuments.name, "other", *own).choice(of_another_subject or others) if others else None


def _together(picture: Image.Image, other: Image.Image, rng: random.Random) -> Image.Image:
    """Place two pictures in opposite corners of a square."""
    edge = sheet_edge(picture, _SHARES[0])
    sheet = Image.new("RGB", (edge, edge), _BACKGROUND)
    right, down = rng.random() < 0.5, rng.random() < 0.5
    for document, share, at_right, at_bottom in (
        (picture, _SHARES[0], right, down),
        (other, _SHARES[1], not right, not down),
    ):
        part = fitted(document, round(share * edge), round(share * edge))
        sheet.paste(part, ((edge - part.width) * at_right, (edge - part.height) * at_bottom))
    return sheet
