"""Draw subjects whose every attribute is known.

One seed and one spec give one `Rendering`: the picture, the value of every field, and where each character stands. The
same seed gives the same picture; fonts come from matplotlib's own data, so they do not depend on the system.
"""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from lightning_neuralgate.data.rendering.page import SHAPES, Page, rgb, shade
from lightning_neuralgate.data.rendering.scene import lay_on_table
from lightning_neuralgate.data.rendering.spec import (
    BlockElement,
    FieldSpec,
    PolygonElement,
    ShapeElement,
    SubjectSpec,
    TextElement,
    ValueElement,
    VariationSpec,
    pattern_alphabet,
)
from lightning_neuralgate.errors import DataFormatError, MissingDependencyError

PICTURE_SIZE = 288


@dataclass(frozen=True)
class DrawnCharacter:
    """One legible character of a field's value: centre and size as shares of the picture, place within the value."""

    char: str
    field: str
    index: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Rendering:
    """A picture with its truth."""

    image: Image.Image
    values: dict[str, str]
    characters: tuple[DrawnCharacter, ...]


def render(spec: SubjectSpec, seed: int, size: int = PICTURE_SIZE) -> Rendering:
    """Draw one picture of a subject.

    Args:
        spec: what to draw.
        seed: seeds the values, the fonts and every variation.
        size: edge of the square picture in pixels.

    Returns:
        The picture (RGB, `size` x `size`), all field values, and the drawn characters of those values.

    Raises:
        DataFormatError: a field's Faker provider does not exist, or an emblem is no known shape.
    """
    rng = random.Random(f"{spec.subject}/{seed}")
    values = {name: _draw_value(field, f"{spec.subject}: {name}", rng) for name, field in spec.fields.items()}
    colours = spec.fields[spec.colour_field].choices
    assert isinstance(colours, dict)  # the spec's validator made sure
    layout = spec.layouts[values[spec.layout_field] if spec.layout_field else next(iter(spec.layouts))]
    tint = 1.0 + rng.uniform(-spec.variations.tint, spec.variations.tint)
    page = Page(
        width=round(layout.size[0] * size),
        height=round(layout.size[1] * size),
        colour=shade(rgb(colours[values[spec.colour_field]]), tint),
        rng=rng,
    )
    if layout.sheet:
        page.sheet(layout.radius)
    font = rng.choice(spec.variations.fonts)
    for element in layout.elements:
        if isinstance(element, TextElement):
            page.text(element.text, element.box, "bold" if element.bold else "sans")
        elif isinstance(element, ValueElement):
            value = values[element.field].upper()
            page.value(element.field, element.label, value, element.box, "mono" if element.mono else font)
        elif isinstance(element, ShapeElement):
            if values[element.field] not in SHAPES:
                raise DataFormatError(
                    f"{spec.subject}: emblem '{values[element.field]}' is none of {', '.join(SHAPES)}"
                )
            page.emblem(values[element.field], element.box)
        elif isinstance(element, BlockElement):
            if element.draw == "ellipse":
                page.ellipse(element.box, element.fill)
            else:
                page.rectangle(element.box, element.fill, element.radius)
        elif isinstance(element, PolygonElement):
            page.polygon(element.points, element.fill)
        else:
            page.decorate(element)
    return _finish(page, values, size, spec.variations, rng)


def ordinary_picture(seed: int, size: int = PICTURE_SIZE) -> tuple[Image.Image, str, str]:
    """A picture with nothing private in it: one coloured shape on a table. Returns (picture, colour, shape)."""
    rng = random.Random(f"ordinary/{seed}")
    colour, code = rng.choice(list(ORDINARY_COLOURS.items()))
    shape = rng.choice(SHAPES)
    page = Page(width=round(0.7 * size), height=round(0.7 * size), colour=rgb(code), rng=rng)
    left, top, edge = rng.uniform(0.02, 0.2), rng.uniform(0.02, 0.2), rng.uniform(0.5, 0.75)
    page.emblem(shape, (left, top, left + edge, top + edge), colour=rgb(code))
    return _finish(page, {}, size, VariationSpec(), rng).image, colour, shape


ORDINARY_COLOURS = {
    "red": "#c0202f",
    "blue": "#2450b8",
    "green": "#23823f",
    "yellow": "#f1d62c",
    "orange": "#ee8a24",
    "purple": "#7d3cb0",
    "black": "#202024",
    "white": "#fafafa",
}


def _finish(page: Page, values: dict[str, str], size: int, variations: VariationSpec, rng: random.Random) -> Rendering:
    image, placed = lay_on_table(page, size, variations, rng)
    characters = tuple(
        DrawnCharacter(p.char, p.field, p.index, p.x / size, p.y / size, p.width / size, p.height / size)
        for p in placed
    )
    return Rendering(image=image, values=values, characters=characters)


def _draw_value(field: FieldSpec, place: str, rng: random.Random) -> str:
    if field.choices is not None:
        return rng.choice(list(field.choices))
    if field.pattern is not None:
        return "".join(rng.choice(pattern_alphabet(char)) for char in field.pattern)
    if field.years is not None:
        first, last = (datetime.date(year, 1, 1) for year in (field.years[0], field.years[1] + 1))
        return (first + datetime.timedelta(days=rng.randrange((last - first).days))).strftime(field.date_format)
    assert field.faker is not None  # the spec's validator made sure
    return _fake(field.faker, field.max_length, place, rng.getrandbits(48))


@lru_cache(maxsize=1)
def _faker():  # type: ignore[no-untyped-def]
    try:
        from faker import Faker
    except ImportError as error:
        raise MissingDependencyError("rendering needs Faker: pip install 'lightning-neuralgate[demo]'") from error
    return Faker("en_US")


def _fake(provider: str, max_length: int, place: str, seed: int) -> str:
    faker = _faker()
    faker.seed_instance(seed)
    make = getattr(faker, provider, None)
    if make is None or provider.startswith("_"):
        raise DataFormatError(f"{place}: Faker has no provider '{provider}'")
    for _ in range(1000):
        value = str(make())
        if len(value) <= max_length:
            return value
    raise DataFormatError(
        f"{place}: Faker's '{provider}' gives nothing of at most {max_length} characters; raise max_length"
    )
