"""Draw pictures of subjects with known attributes.

A spec and a seed determine a `Rendering`: the picture, the value of every field, and the position of each character. Fonts
come with matplotlib, so pictures do not depend on the system.
"""

from __future__ import annotations

import datetime
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image

from lightning_neuralgate.data.rendering.page import DrawnCharacter, Page, rgb, shade
from lightning_neuralgate.data.rendering.scene import compose_scene
from lightning_neuralgate.data.rendering.spec import (
    SHAPES,
    BlockElement,
    FieldSpec,
    Font,
    LayoutSpec,
    PolygonElement,
    ShapeElement,
    SubjectSpec,
    TextElement,
    ValueElement,
    VariationSpec,
)
from lightning_neuralgate.errors import DataFormatError, MissingDependencyError

PICTURE_SIZE = 288
ORDINARY_COLOURS = {
    "red": "#c0202f", "blue": "#2450b8", "green": "#23823f", "yellow": "#f1d62c",
    "orange": "#ee8a24", "purple": "#7d3cb0", "black": "#202024", "white": "#fafafa",
}  # fmt: skip
_PLACEHOLDERS = {"#": string.digits, "?": string.ascii_uppercase}


@dataclass(frozen=True)
class Rendering:
    """A picture with its ground truth.

    Attributes:
        image: the picture, RGB and square.
        values: value of each field.
        characters: the legible characters of these values; positions and sizes are shares of the picture's edge.
    """

    image: Image.Image
    values: dict[str, str]
    characters: tuple[DrawnCharacter, ...]


def render(spec: SubjectSpec, seed: int, size: int = PICTURE_SIZE) -> Rendering:
    """Draw one picture of a subject.

    Args:
        spec: the subject's spec.
        seed: seed of the values, the font and every variation.
        size: edge of the square picture in pixels.

    Raises:
        DataFormatError: a field's Faker provider does not exist or yields no value that is short enough, or an emblem is not
            one of the known shapes.
        MissingDependencyError: Faker or matplotlib is not installed.
    """
    rng = random.Random(f"{spec.subject}/{seed}")
    page, values = draw_document(spec, rng, size)
    return _compose(page, values, size, spec.variations, rng)


def draw_document(spec: SubjectSpec, rng: random.Random, size: int) -> tuple[Page, dict[str, str]]:
    """Draw values, and the page of a subject that shows them, for a picture of `size` pixels."""
    values = {name: draw_value(field, f"{spec.subject}: {name}", rng) for name, field in spec.fields.items()}
    colours = spec.fields[spec.colour_field].choices
    assert isinstance(colours, dict)  # checked by the spec's validator
    layout = spec.layouts[values[spec.layout_field] if spec.layout_field else next(iter(spec.layouts))]
    tint = 1.0 + rng.uniform(-spec.variations.tint, spec.variations.tint)
    page = Page(
        width=round(layout.size[0] * size),
        height=round(layout.size[1] * size),
        colour=shade(rgb(colours[values[spec.colour_field]]), tint),
        rng=rng,
    )
    draw_elements(page, layout, values, spec.variations.fonts, rng, spec.subject)
    return page, values


def draw_elements(
    page: Page, layout: LayoutSpec, values: Mapping[str, str], fonts: Sequence[Font], rng: random.Random, owner: str
) -> None:
    """Draw the elements of a layout on a page, with values in one of the fonts; `owner` is named in errors."""
    if layout.sheet:
        page.sheet(layout.radius)
    font = rng.choice(fonts)
    for element in layout.elements:
        if isinstance(element, TextElement):
            page.text(element.text, element.box, "bold" if element.bold else "sans")
        elif isinstance(element, ValueElement):
            value = values[element.field].upper()
            page.value(element.field, element.label, value, element.box, "mono" if element.mono else font)
        elif isinstance(element, ShapeElement):
            if values[element.field] not in SHAPES:
                raise DataFormatError(
                    f"{owner}: field '{element.field}' has the value '{values[element.field]}', which is not a shape "
                    f"that an emblem can have; the shapes are {', '.join(SHAPES)}"
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


def ordinary_picture(seed: int, size: int = PICTURE_SIZE) -> tuple[Image.Image, str, str]:
    """Draw a picture without private content, a coloured shape on a table; return (picture, colour, shape)."""
    rng = random.Random(f"ordinary/{seed}")
    colour, code = rng.choice(list(ORDINARY_COLOURS.items()))
    shape = rng.choice(SHAPES)
    page = Page(width=round(0.7 * size), height=round(0.7 * size), colour=rgb(code), rng=rng)
    left, top, edge = rng.uniform(0.02, 0.2), rng.uniform(0.02, 0.2), rng.uniform(0.5, 0.75)
    page.emblem(shape, (left, top, left + edge, top + edge), colour=rgb(code))
    return _compose(page, {}, size, VariationSpec(), rng).image, colour, shape


def _compose(page: Page, values: dict[str, str], size: int, variations: VariationSpec, rng: random.Random) -> Rendering:
    image, characters = compose_scene(page, size, variations, rng)
    shares = (replace(c, x=c.x / size, y=c.y / size, width=c.width / size, height=c.height / size) for c in characters)
    return Rendering(image, values, tuple(shares))


def draw_value(field: FieldSpec, place: str, rng: random.Random) -> str:
    """Draw the value of a field; `place` is named in errors."""
    if field.choices is not None:
        return rng.choice(list(field.choices))
    if field.pattern is not None:
        return "".join(rng.choice(_PLACEHOLDERS.get(char, char)) for char in field.pattern)
    if field.years is not None:
        first, last = (datetime.date(year, 1, 1) for year in (field.years[0], field.years[1] + 1))
        return (first + datetime.timedelta(days=rng.randrange((last - first).days))).strftime(field.date_format)
    assert field.faker is not None  # checked by the spec's validator
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
    generate = getattr(faker, provider, None)
    if generate is None or provider.startswith("_"):
        raise DataFormatError(
            f"{place}: Faker has no provider '{provider}'; see https://faker.readthedocs.io for their names"
        )
    for _ in range(1000):
        value = str(generate())
        if len(value) <= max_length:
            return value
    raise DataFormatError(
        f"{place}: Faker's '{provider}' yields no value of at most {max_length} characters; raise max_length"
    )
