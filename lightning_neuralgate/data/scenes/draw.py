"""Draw scenes: objects on a background, public writing, and documents, with everything in them known.

A spec and a seed determine a `Scene`. The writing of training scenes and that of tests are disjoint, see `held_out_value`.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageFilter

from lightning_neuralgate.data.image_files import read_image
from lightning_neuralgate.data.rendering.draw import PICTURE_SIZE, draw_document, draw_elements, draw_value
from lightning_neuralgate.data.rendering.page import DrawnCharacter, Page, rgb, shade
from lightning_neuralgate.data.rendering.scene import apply_light
from lightning_neuralgate.data.rendering.spec import SubjectSpec, VariationSpec
from lightning_neuralgate.data.scenes.spec import MAX_OBJECTS, SceneSpec, SignSpec
from lightning_neuralgate.data.scenes.sprites import ANY_COLOUR, PAINTS, object_entries, plural_of, sprite
from lightning_neuralgate.errors import DataFormatError

Box = tuple[float, float, float, float]
SIGN_SHARE = 0.4
"""Share of the scenes that have a thing with public writing, where the place has any."""
DOCUMENT_SHARE = 0.15
"""Share of the scenes that have a document, where the place has any; a third of these have two."""
_HELD_OUT_PARTS = 8
"""One in this many values of public writing is held out for tests."""
_SIZES = ((2, (0.3, 0.48)), (4, (0.23, 0.33)), (MAX_OBJECTS, (0.2, 0.27)))
"""Number of objects, at most, and the range of their sizes as shares of the picture's edge."""
_SIZES_WITH_THINGS = (0.17, 0.24)
"""Range of the objects' sizes where there are signs or documents."""
_TRIES = 80
_GAP = 0.01
"""Least distance between things, as a share of the picture's edge."""


@dataclass(frozen=True)
class SceneObject:
    """An object: its name and plural, category and colour ("" if none), and box (left, top, right, bottom as shares)."""

    name: str
    plural: str
    category: str
    colour: str
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        """Centre (x, y) of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def size(self) -> float:
        """Longer side of the box, as a share of the picture's edge."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True)
class SceneThing:
    """A thing with writing: its spec, the value of each field, its box, and its characters (shares of the edge)."""

    spec: SignSpec | SubjectSpec
    values: dict[str, str]
    box: Box
    characters: tuple[DrawnCharacter, ...]

    @property
    def name(self) -> str:
        """What it is: "bus", "passport"."""
        return self.spec.thing if isinstance(self.spec, SignSpec) else self.spec.subject


@dataclass(frozen=True)
class Scene:
    """A picture (RGB, square) of a place with its ground truth."""

    image: Image.Image
    spec: SceneSpec
    objects: tuple[SceneObject, ...]
    signs: tuple[SceneThing, ...]
    documents: tuple[SceneThing, ...]

    def counts(self) -> Counter[str]:
        """How many there are of each object."""
        return Counter(item.name for item in self.objects)

    def shown(self) -> set[str]:
        """Names of everything in the picture: objects, things with writing, documents."""
        things = {thing.name for thing in (*self.signs, *self.documents)}
        return things | {item.name for item in self.objects}


def held_out_value(value: str) -> bool:
    """Return whether a value of public writing is kept out of training: an eighth of all values, by their checksum.

    >>> [number for number in range(100, 120) if held_out_value(str(number))]
    [103, 108, 117]
    """
    return zlib.crc32(value.encode()) % _HELD_OUT_PARTS == 0


def draw_scene(
    spec: SceneSpec,
    seed: int,
    held_out: bool = False,
    size: int = PICTURE_SIZE,
    objects: Sequence[str] | None = None,
    signs: Sequence[SignSpec] | None = None,
    documents: Sequence[SubjectSpec] | None = None,
) -> Scene:
    """Draw one scene.

    Args:
        spec: the place.
        seed: seed of everything in the picture.
        held_out: take the values of public writing from those kept for tests instead of from all others, and put objects into
            unusual company: one in four scenes shows an object that does not belong to the place.
        size: edge of the square picture in pixels.
        objects: the objects to show, with repetitions, at most `MAX_OBJECTS`; None to draw them by the place's weights.
        signs: things with writing to show; None to draw them.
        documents: documents to show, at most two; None to draw them.
    """
    rng = random.Random(f"scene/{spec.place}/{seed}/{held_out}")
    drawn_documents, drawn_signs = _drawn_things(spec, rng)
    documents = drawn_documents if documents is None else documents
    signs = drawn_signs if signs is None else signs
    if objects is None:
        objects = _drawn_objects(spec, rng, fewer=len(signs) + 2 * len(documents), unusual=held_out)
    image = _background(spec, size, rng)
    taken: list[Box] = []
    pages = [
        draw_document(document, rng, round(size * (0.78 if len(documents) == 1 else 0.5))) for document in documents
    ]
    pages += [_sign_page(sign, size, held_out, rng) for sign in signs]
    things = []
    specs: list[SubjectSpec | SignSpec] = [*documents, *signs]
    for thing, (page, values) in zip(specs, pages, strict=True):
        placed = _place(page.image.width / size, page.image.height / size, taken, rng)
        if placed is None:
            continue
        taken.append(placed)
        left, top = round(placed[0] * size), round(placed[1] * size)
        _paste(image, page.image, left, top)
        characters = tuple(
            DrawnCharacter(
                c.char, c.field, c.index, (c.x + left) / size, (c.y + top) / size, c.width / size, c.height / size
            )
            for c in page.characters
        )
        things.append(SceneThing(thing, values, placed, characters))
    drawn = _paste_objects(image, spec, objects, taken, rng)
    image = apply_light(image, VariationSpec(), rng)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.6)))
    return Scene(
        image,
        spec,
        tuple(drawn),
        signs=tuple(thing for thing in things if isinstance(thing.spec, SignSpec)),
        documents=tuple(thing for thing in things if isinstance(thing.spec, SubjectSpec)),
    )


def _drawn_things(spec: SceneSpec, rng: random.Random) -> tuple[list[SubjectSpec], list[SignSpec]]:
    documents, signs = spec.document_specs, spec.sign_specs
    kind = rng.random()
    if documents and kind < DOCUMENT_SHARE:
        both = len(documents) > 1 and kind < DOCUMENT_SHARE / 3
        return rng.sample(documents, 2 if both else 1), []
    if signs and kind < DOCUMENT_SHARE + SIGN_SHARE:
        return [], [rng.choice(signs)]
    return [], []


def _drawn_objects(spec: SceneSpec, rng: random.Random, fewer: int, unusual: bool) -> list[str]:
    """Draw which objects to show, some of them several times."""
    total = rng.randint(1, MAX_OBJECTS) if not fewer else rng.randint(0 if fewer > 1 else 1, max(1, 4 - fewer))
    names: list[str] = []
    left = dict(spec.objects)
    while len(names) < total and left:
        name = rng.choices(list(left), weights=list(left.values()))[0]
        del left[name]
        copies = rng.choices((1, 2, 3, 4, 5), weights=(10, 4, 3, 2, 1))[0]
        names += [name] * min(copies, total - len(names))
    if unusual and names and rng.random() < 0.25:
        strangers = [name for name in object_entries() if name not in spec.objects]
        names[-1] = rng.choice(strangers)
    return names


def _background(spec: SceneSpec, size: int, rng: random.Random) -> Image.Image:
    top, bottom = (
        shade(rgb(rng.choice(colours)), rng.uniform(0.93, 1.05))
        for colours in (spec.background.top, spec.background.bottom)
    )
    image = Image.new("RGB", (size, size), top)
    horizon = round(rng.uniform(*spec.background.horizon) * size)
    image.paste(bottom, (0, horizon, size, size))
    edge = size // 3
    noise = Image.frombytes("L", (edge, edge), rng.randbytes(edge * edge)).resize((size, size))
    return Image.blend(image, Image.merge("RGB", [noise] * 3), rng.uniform(0.0, 0.07))


def _sign_page(spec: SignSpec, size: int, held_out: bool, rng: random.Random) -> tuple[Page, dict[str, str]]:
    values = {}
    for name, field in spec.fields.items():
        value = draw_value(field, f"{spec.thing}: {name}", rng)
        if field.written:
            for _ in range(200):
                if held_out_value(value) == held_out:
                    break
                value = draw_value(field, f"{spec.thing}: {name}", rng)
        values[name] = value
    colours = spec.fields[spec.colour_field].choices
    assert isinstance(colours, dict)  # checked by the spec's validator
    scale = rng.uniform(1.1, 1.3)
    page = Page(
        width=round(min(0.95, spec.layout.size[0] * scale) * size),
        height=round(min(0.95, spec.layout.size[1] * scale) * size),
        colour=shade(rgb(colours[values[spec.colour_field]]), rng.uniform(0.95, 1.05)),
        rng=rng,
    )
    draw_elements(page, spec.layout, values, VariationSpec().fonts, rng, spec.thing)
    return page, values


def _paste_objects(
    image: Image.Image, spec: SceneSpec, names: Sequence[str], taken: list[Box], rng: random.Random
) -> list[SceneObject]:
    """Draw objects where there is room, and return those that found any."""
    size = image.width
    sizes = next(sizes for most, sizes in _SIZES if len(names) <= most)
    if taken:
        sizes = _SIZES_WITH_THINGS
    colours: dict[str, str] = {}
    objects = []
    for name in names:
        entry = spec.entry(name)
        paint = ""
        if entry.colour == ANY_COLOUR:
            paint = colours.setdefault(name, rng.choice(list(PAINTS)))
        picture = _own_sprite(spec.sprite_file(name)) if name in spec.sprites else sprite(name, paint)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        edge = rng.uniform(*sizes) * size
        scale = edge / max(picture.size)
        picture = picture.resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BICUBIC
        )
        picture = picture.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
        picture = picture.crop(picture.getbbox())
        placed = _place(picture.width / size, picture.height / size, taken, rng)
        if placed is None:
            continue
        taken.append(placed)
        _paste(image, picture, round(placed[0] * size), round(placed[1] * size))
        objects.append(SceneObject(name, plural_of(name, entry), entry.category, paint or entry.colour, placed))
    return objects


def _place(width: float, height: float, taken: Sequence[Box], rng: random.Random) -> Box | None:
    """Find a place for a box of this size that touches no other box."""
    for _ in range(_TRIES):
        left, top = rng.uniform(0.01, max(0.01, 0.99 - width)), rng.uniform(0.01, max(0.01, 0.99 - height))
        box = (left, top, left + width, top + height)
        if all(
            box[2] + _GAP < other[0] or other[2] + _GAP < box[0] or box[3] + _GAP < other[1] or other[3] + _GAP < box[1]
            for other in taken
        ):
            return box
    return None


def _paste(image: Image.Image, picture: Image.Image, left: int, top: int) -> None:
    """Paste a picture with transparency, with a soft shadow."""
    alpha = picture.getchannel("A")
    shadow = Image.new("L", image.size, 0)
    shadow.paste(alpha.point(lambda value: value // 4), (left + 2, top + 3))
    image.paste((20, 20, 20), mask=shadow.filter(ImageFilter.BoxBlur(2)))
    image.paste(picture, (left, top), picture)


@lru_cache(maxsize=64)
def _own_sprite(file: Path) -> Image.Image:
    picture = read_image(file, "of a scene's sprite", alpha=True)
    box = picture.getchannel("A").getbbox()
    if box is None:
        raise DataFormatError(f"{file}: every pixel is transparent, so there is nothing to draw")
    return picture
