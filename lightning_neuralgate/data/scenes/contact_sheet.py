"""Contact sheets of scenes: pictures of a place, each above the sentence that describes it."""

from __future__ import annotations

import textwrap

from PIL import Image

from lightning_neuralgate.data.rendering.contact_sheet import (
    BENIGN_COLOUR,
    LINE_LENGTH,
    arrange,
    captioned,
)
from lightning_neuralgate.data.rendering.dataset import picture_seed
from lightning_neuralgate.data.scenes.draw import draw_scene
from lightning_neuralgate.data.scenes.questions import caption
from lightning_neuralgate.data.scenes.spec import SceneSpec


def scene_sheet(spec: SceneSpec, seed: int = 0, count: int = 12, columns: int = 4) -> Image.Image:
    """Draw pictures of a place in a grid, each above its caption and the writing in it."""
    cells = []
    for index in range(count):
        scene = draw_scene(spec, picture_seed(seed, f"{spec.place}/contact-sheet", index))
        written = [
            f"{field.phrase}: {thing.values[name]}"
            for thing in scene.signs
            for name, field in thing.spec.fields.items()
            if name != thing.spec.colour_field
        ]
        lines = [line for text in (caption(scene), *written) for line in textwrap.wrap(text, LINE_LENGTH)]
        cells.append(captioned(scene.image, [(line, BENIGN_COLOUR) for line in lines]))
    return arrange(cells, columns)
