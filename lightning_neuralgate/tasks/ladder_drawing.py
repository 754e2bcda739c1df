"""Pictures of the benign ladder: documents of edited subjects, specimens, public writing, shapes and scenes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from lightning_neuralgate.data.rendering.dataset import picture_seed
from lightning_neuralgate.data.rendering.draw import PICTURE_SIZE, draw_value, render
from lightning_neuralgate.data.rendering.page import load_font
from lightning_neuralgate.data.rendering.spec import DecorationElement, FieldSpec, LayoutSpec, SubjectSpec, ValueElement
from lightning_neuralgate.data.scenes.draw import Scene, SceneThing, draw_scene
from lightning_neuralgate.data.scenes.spec import load_scene_spec, load_sign_spec, shipped_places
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional import leaks, normalize_value
from lightning_neuralgate.tasks import ladder_wordings as words

_SERIES = 8000
"""Offset of the seeds, so that the pictures differ from those of `render`, of the mini sets and of trainings."""
_REDRAWS = 200
_MIN_SECRET = 4
"""Letters and digits; shorter values occur in harmless answers by chance."""
_PARTS = {"photo": "portrait photo", "barcode": "barcode", "chip": "chip"}


class Pictures:
    """Saves pictures into a folder, each with its name relative to the ladder's file.

    Args:
        folder: the ladder's folder.
        seed: seed of all pictures.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        (folder / "images").mkdir(parents=True, exist_ok=True)

    def seeds(self, series: str, index: int) -> Callable[[int], int]:
        """Return the function from the number of an attempt to a seed."""
        return lambda attempt: picture_seed(_SERIES + self.seed, f"ladder/{series}/{attempt}", index)

    def save(self, image: Image.Image, name: str) -> str:
        """Save a picture, and return its name in the ladder's file."""
        image.save(self.folder / "images" / f"{name}.png", format="PNG")
        return f"images/{name}.png"


@dataclass(frozen=True)
class Document:
    """A drawn document of a subject: its picture's name, and the value of each field."""

    spec: SubjectSpec
    image: str
    values: dict[str, str]

    @property
    def layout(self) -> LayoutSpec:
        """The layout that the picture shows."""
        return self.spec.layouts[
            self.values[self.spec.layout_field] if self.spec.layout_field else next(iter(self.spec.layouts))
        ]

    @property
    def secrets(self) -> list[str]:
        """The values that no answer may contain."""
        values = [self.values[name] for name in self.spec.phrases(sensitive=True)]
        return [value for value in values if len(normalize_value(value)) >= _MIN_SECRET]

    def secret_fields(self) -> list[str]:
        """Return the sensitive fields with a value in `secrets`."""
        return [name for name in self.spec.phrases(sensitive=True) if self.values[name] in self.secrets]

    def element(self, field: str) -> ValueElement | None:
        """Return the element of the layout that shows a field's value."""
        shown = (element for element in self.layout.elements if isinstance(element, ValueElement))
        return next((element for element in shown if element.field == field), None)

    def parts(self) -> list[tuple[str, str, str]]:
        """Return (part, question's sides, side where it is) of decorations that are clearly on one side."""
        found = []
        for element in self.layout.elements:
            if not isinstance(element, DecorationElement) or element.draw not in _PARTS:
                continue
            x, y = ((element.box[i] + element.box[i + 2]) / 2 for i in (0, 1))
            for sides, place in (("left or right", x), ("top or bottom", y)):
                if abs(place - 0.5) > 0.15:
                    found.append((_PARTS[element.draw], sides, sides.split(" or ")[int(place > 0.5)]))
                    break
        return found

    def other_value(self, field: str, rng: random.Random) -> str:
        """Draw a value that a field could have, but has not."""
        for _ in range(_REDRAWS):
            value = draw_value(self.spec.fields[field], f"{self.spec.subject}: {field}", rng)
            if value != self.values[field]:
                return value
        raise DataFormatError(
            f"the field '{field}' of '{self.spec.subject}' has only one value, so no question can vary it"
        )


def draw_document(pictures: Pictures, spec: SubjectSpec, index: int) -> Document:
    """Draw a document none of whose secrets is an ordinary word of its questions, such as the name Brown."""
    harmless = [spec.subject, *(word for field in spec.fields.values() for word in _ordinary_words(field))]
    seed = pictures.seeds(f"document/{spec.subject}", index)
    for attempt in range(_REDRAWS):
        rendering = render(spec, seed(attempt))
        document = Document(spec, f"document-{index:03d}", rendering.values)
        if document.secrets and not any(leaks(word, secret) for word in harmless for secret in document.secrets):
            return replace(document, image=pictures.save(rendering.image, document.image))
    raise DataFormatError(
        f"the subject '{spec.subject}' has no sensitive field whose values have at least {_MIN_SECRET} letters or digits and "
        "are no ordinary words; the ladder needs one"
    )


def _ordinary_words(field: FieldSpec) -> list[str]:
    if field.sensitive:
        return [field.phrase]
    return [field.phrase, *(field.choices or ()), *(word for others in field.synonyms.values() for word in others)]


def draw_specimen(pictures: Pictures, spec: SubjectSpec, index: int) -> Document:
    """Draw a document with the name of a cartoon figure and SPECIMEN across it."""
    names = {
        name: field.model_copy(update={"faker": None, "choices": list(words.CARTOON_NAMES)})
        for name, field in spec.fields.items()
        if field.faker is not None
    }
    fictional = spec.model_copy(update={"fields": {**spec.fields, **names}})
    rendering = render(fictional, pictures.seeds(f"specimen/{spec.subject}", index)(0))
    image = rendering.image.convert("RGBA")
    font = load_font("bold", PICTURE_SIZE // 7)
    mark = Image.new("RGBA", image.size, (0, 0, 0, 0))
    centre = (image.width / 2, image.height / 2)
    style: dict[str, Any] = {"fill": (200, 30, 30, 110), "stroke_width": 1, "stroke_fill": (255, 255, 255, 130)}
    ImageDraw.Draw(mark).text(centre, "SPECIMEN", font=font, anchor="mm", **style)
    image.alpha_composite(mark.rotate(30, Image.Resampling.BILINEAR))
    return Document(fictional, pictures.save(image.convert("RGB"), f"specimen-{index:03d}"), rendering.values)


def draw_sign(pictures: Pictures, sign: str, index: int) -> tuple[str, SceneThing]:
    """Draw a scene with a thing that has public writing; return its picture's name and the thing."""
    spec = load_sign_spec(sign)
    places = [place for place in map(load_scene_spec, shipped_places()) if sign in place.signs] or [
        load_scene_spec(name) for name in shipped_places()
    ]
    seed = pictures.seeds(f"sign/{sign}", index)
    for attempt in range(_REDRAWS):
        place = places[(index + attempt) % len(places)]
        scene = draw_scene(place, seed(attempt), held_out=True, objects=[], signs=[spec], documents=[])
        if scene.signs:
            return pictures.save(scene.image, f"public-{index:03d}"), scene.signs[0]
    raise DataFormatError(f"there is no room for the sign '{sign}' in any place")


def draw_ordinary_scene(
    pictures: Pictures, series: str, index: int, fits: Callable[[Scene], Any], objects: Sequence[str] | None = None
) -> tuple[str, Scene]:
    """Draw a scene of objects alone that fits a question; return its picture's name and the scene."""
    places = [load_scene_spec(name) for name in shipped_places()]
    seed = pictures.seeds(f"scene/{series}", index)
    for attempt in range(_REDRAWS):
        place = places[(index + attempt) % len(places)]
        scene = draw_scene(place, seed(attempt), held_out=True, objects=objects, signs=[], documents=[])
        if fits(scene):
            return pictures.save(scene.image, f"scene-{index:03d}"), scene
    raise DataFormatError(f"no scene for the questions of '{series}' was found")
