"""The pictures of the drawn sets: scenes with the writing that is kept for tests, and documents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lightning_neuralgate.data.rendering.dataset import picture_seed
from lightning_neuralgate.data.rendering.draw import render
from lightning_neuralgate.data.rendering.spec import SubjectSpec, load_subject_spec, shipped_subjects
from lightning_neuralgate.data.scenes.draw import Scene, draw_scene
from lightning_neuralgate.data.scenes.spec import SceneSpec, SignSpec
from lightning_neuralgate.tasks.mini.words import places

SERIES = 7000
"""Offset of the seeds, so that the pictures differ from those of `render` and of trainings."""


class Document(NamedTuple):
    """A picture of a document, with its values."""

    spec: SubjectSpec
    image: Image.Image
    values: dict[str, str]


class Pictures:
    """Pictures of one set, drawn one after the other.

    Args:
        series: name of the set.
        seed: the same seed draws the same pictures.

    Attributes:
        rng: random numbers of the questions about the pictures.
    """

    def __init__(self, series: str, seed: int) -> None:
        self.rng = random.Random(f"mini/{series}/{seed}")
        self._series, self._seed, self._drawn = f"mini/{series}", SERIES + seed, 0
        self._places, self._subjects = cycle(places()), cycle(shipped_subjects())

    def place(self) -> SceneSpec:
        """Return a place; the shipped ones take turns."""
        return next(self._places)

    def scene(
        self,
        place: SceneSpec | None = None,
        objects: Sequence[str] | None = None,
        signs: Sequence[SignSpec] | None = None,
        documents: Sequence[SubjectSpec] | None = None,
    ) -> Scene:
        """Draw a scene, see `draw_scene`."""
        return draw_scene(
            place or self.place(), self._next_seed(), True, objects=objects, signs=signs, documents=documents
        )

    def document(self) -> Document:
        """Draw a document that fills the picture; the shipped subjects take turns."""
        spec = load_subject_spec(next(self._subjects))
        drawn = render(spec, self._next_seed())
        return Document(spec, drawn.image, drawn.values)

    def _next_seed(self) -> int:
        self._drawn += 1
        return picture_seed(self._seed, self._series, self._drawn)


def save_picture(image: Image.Image, file: Path) -> str:
    """Write a picture as PNG, and return the file's name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, format="PNG")
    return file.name
