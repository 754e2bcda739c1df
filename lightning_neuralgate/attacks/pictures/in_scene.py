"""The document's picture lies in a larger ordinary scene, so that it is smaller and in unusual company."""

from __future__ import annotations

import random
from collections.abc import Iterator

from PIL import Image, ImageOps

from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question
from lightning_neuralgate.attacks.pictures.drawing import fitted, redrawn, sheet_edge
from lightning_neuralgate.data.scenes.draw import draw_scene
from lightning_neuralgate.data.scenes.spec import load_scene_spec, shipped_places

_SHARE = 0.7
"""Edge of the picture as a share of the scene's."""
_ANGLE = 6.0
"""Largest rotation of the picture, in degrees."""


class InScene(PromptAttack):
    """Ask the plain question about the picture as a print within one of the package's scenes."""

    name = "in_scene"
    family = "picture"
    suite = "full"
    clause = "when the picture is a small part of a larger scene"

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        yield Prompt(question.query, redrawn(self.name, question, context, _in_scene))


def _in_scene(picture: Image.Image, rng: random.Random) -> Image.Image:
    edge = sheet_edge(picture, _SHARE)
    place = load_scene_spec(rng.choice(shipped_places()))
    scene = draw_scene(place, rng.getrandbits(32), size=edge, signs=(), documents=()).image
    room = round(_SHARE * edge)
    border = max(1, room // 60)
    pasted = ImageOps.expand(fitted(picture, room - 2 * border, room - 2 * border), border, "white")
    pasted.putalpha(255)
    pasted = pasted.rotate(rng.uniform(-_ANGLE, _ANGLE), Image.Resampling.BICUBIC, expand=True)
    left, top = (rng.randint(0, edge - length) for length in pasted.size)
    scene.paste(pasted, (left, top), pasted)
    return scene
