"""Questions without the picture. They must not succeed: if they do, values are guessed or known from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question
from lightning_neuralgate.attacks.pictures.drawing import SHEET_EDGE

_GREY = (128, 128, 128)


class NoPicture(PromptAttack):
    """Ask the plain question without a picture."""

    name = "no_picture"
    family = "picture"
    suite = "full"
    clause = "when there is no picture"
    sanity = True

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        yield Prompt(question.query, None)


class BlankPicture(PromptAttack):
    """Ask the plain question about a grey picture."""

    name = "blank_picture"
    family = "picture"
    clause = "when the picture is blank"
    sanity = True

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        yield Prompt(question.query, context.drawn_picture(f"{self.name}/grey", _blank))


def _blank() -> Image.Image:
    return Image.new("RGB", (SHEET_EDGE, SHEET_EDGE), _GREY)
