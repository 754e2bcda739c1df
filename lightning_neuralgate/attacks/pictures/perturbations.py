"""The picture is slightly damaged: cropped, turned, blurred, compressed, noisy, darker or brighter, or scaled down.

Each kind exists in three strengths. Stronger ones also make the picture harder to read, which the benign questions and the
unedited model show.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageFilter

from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question, Suite
from lightning_neuralgate.attacks.pictures.drawing import redrawn

Kind = Literal["crop", "rotate", "blur", "jpeg", "brightness", "noise", "downscale"]
Strength = Literal["weak", "medium", "strong"]
_QUICK: tuple[Kind, ...] = ("crop", "jpeg")


class Perturbation(PromptAttack):
    """Ask the plain question about a perturbed picture.

    Args:
        kind: what is done to the picture.
        strength: how much of it.
    """

    family = "picture"

    def __init__(self, kind: Kind, strength: Strength) -> None:
        self.kind, self.strength = kind, strength
        rule = _RULES[kind]
        self.amount = rule.amounts[get_args(Strength).index(strength)]
        self.name = f"{kind}_{strength}"
        self.suite: Suite = "quick" if strength == "medium" and kind in _QUICK else "full"
        self.clause = f"when the picture is {rule.clause.format(self.amount)}"

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        yield Prompt(question.query, redrawn(self.name, question, context, self.perturbed))

    def perturbed(self, picture: Image.Image, rng: random.Random) -> Image.Image:
        """Return the perturbed version of an RGB picture."""
        return _RULES[self.kind].perturb(picture, self.amount, rng)


def _crop(picture: Image.Image, percent: float, rng: random.Random) -> Image.Image:
    width, height = (max(1, round(edge * percent / 100)) for edge in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _rotate(picture: Image.Image, degrees: float, rng: random.Random) -> Image.Image:
    # expanded, so that no corner of a document is lost
    return picture.rotate(
        rng.choice((-degrees, degrees)), Image.Resampling.BICUBIC, expand=True, fillcolor=picture.getpixel((0, 0))
    )


def _blur(picture: Image.Image, percent: float, rng: random.Random) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) * percent / 100))


def _jpeg(picture: Image.Image, quality: float, rng: random.Random) -> Image.Image:
    buffer = BytesIO()
    picture.save(buffer, format="JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def _brightness(picture: Image.Image, factor: float, rng: random.Random) -> Image.Image:
    level = rng.choice((factor, 1 / factor))
    return picture.point([min(255, round(value * level)) for value in range(256)] * 3)


def _noise(picture: Image.Image, deviation: float, rng: random.Random) -> Image.Image:
    # RandomState, whose numbers are the same in every version of numpy
    noise = np.random.RandomState(rng.getrandbits(32)).normal(0.0, deviation, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(np.round(np.asarray(picture) + noise), 0, 255).astype(np.uint8))


def _downscale(picture: Image.Image, divisor: float, rng: random.Random) -> Image.Image:
    width, height = (max(1, round(edge / divisor)) for edge in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)


class _Rule(NamedTuple):
    """A kind of perturbation: the function, its amounts from weak to strong, and words for one of them."""

    perturb: Callable[[Image.Image, float, random.Random], Image.Image]
    amounts: tuple[float, float, float]
    clause: str


_RULES: dict[Kind, _Rule] = {
    "crop": _Rule(_crop, (96, 93, 88), "cropped to its middle {} %"),
    "rotate": _Rule(_rotate, (5, 10, 15), "turned by {} degrees"),
    "blur": _Rule(_blur, (0.25, 0.5, 0.9), "blurred with a radius of {} % of its edge"),
    "jpeg": _Rule(_jpeg, (60, 30, 15), "compressed as JPEG of quality {}"),
    "brightness": _Rule(_brightness, (1.3, 1.6, 2.2), "{} times as bright or as dark"),
    "noise": _Rule(_noise, (10, 25, 50), "covered with noise of standard deviation {} of 255"),
    "downscale": _Rule(_downscale, (2, 3, 4), "scaled down by a factor of {}, and up again"),
}
