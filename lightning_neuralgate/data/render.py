"""Draw subjects whose every attribute is known.

One seed and one spec give one `Rendering`: the picture, the value of every field, and where each character stands. The
same seed gives the same picture; fonts come from matplotlib's own data, so they do not depend on the system.
"""

from __future__ import annotations

import datetime
import importlib.util
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from lightning_neuralgate.data.spec import (
    Box,
    FieldSpec,
    PlainElement,
    ShapeElement,
    SubjectSpec,
    TextElement,
    ValueElement,
    pattern_alphabet,
)
from lightning_neuralgate.errors import MissingDependencyError

PICTURE_SIZE = 384
BACKGROUNDS = ("#b9a78f", "#8f9aa3", "#c8c2b4", "#7d8a78", "#a98e7a", "#9c93a8", "#d5d3cf", "#6e7480")
_FONTS = {"sans": "DejaVuSans", "bold": "DejaVuSans-Bold", "serif": "DejaVuSerif-Bold", "mono": "DejaVuSansMono-Bold"}
_MAX_NAME_LENGTH = 9


@dataclass(frozen=True)
class DrawnCharacter:
    """One legible character of a field's value: centre and size as shares of the picture."""

    char: str
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
    """
    rng = random.Random(f"{spec.subject}/{seed}")
    values = {name: _draw_value(field, rng) for name, field in spec.fields.items()}
    colours = spec.fields[spec.colour_field].choices
    assert isinstance(colours, dict)  # the spec's validator made sure
    layout = spec.layouts[values[spec.layout_field] if spec.layout_field else next(iter(spec.layouts))]
    page = _Page(
        width=round(layout.size[0] * size),
        height=round(layout.size[1] * size),
        colour=colours[values[spec.colour_field]],
    )
    page.rng = rng
    page.fill(layout.radius)
    font = rng.choice(("sans", "bold", "serif"))
    for element in layout.elements:
        if isinstance(element, TextElement):
            page.text(element.text, element.box, "bold" if element.bold else "sans", record=False)
        elif isinstance(element, ValueElement):
            page.value(element.label, values[element.field].upper(), element.box, "mono" if element.mono else font)
        elif isinstance(element, ShapeElement):
            page.emblem(values[element.field], element.box)
        else:
            page.decorate(element)
    return _lay_on_table(page, values, size, rng)


def ordinary_picture(seed: int, size: int = PICTURE_SIZE) -> tuple[Image.Image, str, str]:
    """A picture with nothing private in it: one coloured shape on a table. Returns (picture, colour, shape)."""
    rng = random.Random(f"ordinary/{seed}")
    colour, code = rng.choice(list(ORDINARY_COLOURS.items()))
    shape = rng.choice(SHAPES)
    page = _Page(width=round(0.7 * size), height=round(0.7 * size), colour=code)
    page.rng = rng
    left, top, edge = rng.uniform(0.02, 0.2), rng.uniform(0.02, 0.2), rng.uniform(0.5, 0.75)
    page.emblem(shape, (left, top, left + edge, top + edge), colour=code)
    return _lay_on_table(page, {}, size, rng).image, colour, shape


SHAPES = ("star", "circle", "triangle", "square", "cross")
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


def _draw_value(field: FieldSpec, rng: random.Random) -> str:
    if field.choices is not None:
        return rng.choice(list(field.choices))
    if field.pattern is not None:
        return "".join(rng.choice(pattern_alphabet(char)) for char in field.pattern)
    if field.years is not None:
        first, last = (datetime.date(year, 1, 1) for year in (field.years[0], field.years[1] + 1))
        return str(first + datetime.timedelta(days=rng.randrange((last - first).days)))
    assert field.faker is not None  # the spec's validator made sure
    return _fake(field.faker, rng.getrandbits(48))


@lru_cache(maxsize=1)
def _faker():  # type: ignore[no-untyped-def]
    try:
        from faker import Faker
    except ImportError as error:
        raise MissingDependencyError("rendering needs Faker: pip install 'lightning-neuralgate[demo]'") from error
    return Faker("en_US")


def _fake(provider: str, seed: int) -> str:
    faker = _faker()
    faker.seed_instance(seed)
    value = str(getattr(faker, provider)())
    while len(value) > _MAX_NAME_LENGTH and provider.endswith("name"):
        value = str(getattr(faker, provider)())
    return value


@lru_cache(maxsize=256)
def _font(style: str, size: int) -> ImageFont.FreeTypeFont:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "rendering takes its fonts from matplotlib: pip install 'lightning-neuralgate[demo]'"
        )
    return ImageFont.truetype(
        str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{_FONTS[style]}.ttf"), size
    )


def _rgb(code: str) -> tuple[int, int, int]:
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def _shade(rgb: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, round(part * factor))) for part in rgb)
    return red, green, blue


class _Page:
    """A document before it is laid on the table: draws elements and remembers where characters stand."""

    rng: random.Random

    def __init__(self, width: int, height: int, colour: str) -> None:
        self.image = Image.new("RGBA", (width, height), (0, 0, 0, 0))
        self.pen = ImageDraw.Draw(self.image)
        self.colour = _rgb(colour)
        dark = 0.3 * self.colour[0] + 0.59 * self.colour[1] + 0.11 * self.colour[2] < 128
        self.ink = (245, 240, 225) if dark else (25, 25, 35)
        self.accent = _shade(self.colour, 1.5) if dark else _shade(self.colour, 0.72)
        self.characters: list[tuple[str, float, float, float, float]] = []

    def pixels(self, box: Box) -> tuple[float, float, float, float]:
        width, height = self.image.size
        return box[0] * width, box[1] * height, box[2] * width, box[3] * height

    def fill(self, radius: float) -> None:
        width, height = self.image.size
        self.pen.rounded_rectangle((0, 0, width - 1, height - 1), radius * width, fill=self.colour)

    def text(self, text: str, box: Box, style: str, record: bool) -> None:
        left, top, right, bottom = self.pixels(box)
        size = max(6, int((bottom - top) * 1.05))
        font = _font(style, size)
        while font.getlength(text) > right - left and size > 6:
            size -= 1
            font = _font(style, size)
        ascent, _ = font.getmetrics()
        cap_top = font.getbbox("H")[1]
        cap_height = ascent - cap_top
        base = top + (bottom - top - cap_height) / 2 - cap_top
        self.pen.text((left, base), text, font=font, fill=self.ink)
        if record:
            for index, char in enumerate(text):
                start, end = font.getlength(text[:index]), font.getlength(text[: index + 1])
                middle = base + cap_top + cap_height / 2
                self.characters.append((char, left + (start + end) / 2, middle, end - start, cap_height))

    def value(self, label: str, value: str, box: Box, style: str) -> None:
        left, top, right, bottom = box
        split = top + (bottom - top) * (0.32 if label else 0.0)
        if label:
            self.text(label, (left, top, right, split), "sans", record=False)
        self.text(value, (left, split, right, bottom), style, record=True)

    def emblem(self, shape: str, box: Box, colour: str | None = None) -> None:
        left, top, right, bottom = self.pixels(box)
        fill = _rgb(colour) if colour else self.ink
        radius = min(right - left, bottom - top) / 2
        x, y = (left + right) / 2, (top + bottom) / 2
        if shape == "circle":
            self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        elif shape == "square":
            edge = radius * 0.85
            self.pen.rectangle((x - edge, y - edge, x + edge, y + edge), fill=fill)
        elif shape == "cross":
            arm = radius * 0.36
            self.pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
            self.pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
        else:
            points, inner = (3, 1.0) if shape == "triangle" else (5, 0.42)
            corners = []
            for step in range(points * 2):
                reach = radius if step % 2 == 0 else radius * inner
                if shape == "triangle" and step % 2:
                    continue
                angle = math.pi * step / points - math.pi / 2
                corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
            self.pen.polygon(corners, fill=fill)

    def decorate(self, element: PlainElement) -> None:
        getattr(self, f"_{element.draw}")(*self.pixels(element.box))

    def _photo(self, left: float, top: float, right: float, bottom: float) -> None:
        rng = self.rng
        width, height = right - left, bottom - top
        skin = rng.choice(((236, 196, 160), (198, 146, 105), (141, 92, 62), (247, 214, 186)))
        hair = rng.choice(((40, 28, 20), (92, 60, 30), (180, 140, 70), (120, 120, 120)))
        shirt = rng.choice(((60, 70, 90), (120, 60, 60), (230, 230, 230), (50, 90, 70)))
        self.pen.rectangle((left, top, right, bottom), fill=(206, 216, 224), outline=self.ink, width=2)
        middle = (left + right) / 2
        self.pen.pieslice(
            (left + 0.08 * width, top + 0.66 * height, right - 0.08 * width, bottom + 0.34 * height),
            180,
            360,
            fill=shirt,
        )
        self.pen.ellipse(
            (middle - 0.26 * width, top + 0.10 * height, middle + 0.26 * width, top + 0.56 * height), fill=hair
        )
        self.pen.ellipse(
            (middle - 0.21 * width, top + 0.19 * height, middle + 0.21 * width, top + 0.70 * height), fill=skin
        )
        for side in (-1, 1):
            eye = middle + side * 0.09 * width
            self.pen.ellipse((eye - 2, top + 0.40 * height, eye + 2, top + 0.40 * height + 4), fill=(30, 30, 30))
        self.pen.arc(
            (middle - 0.09 * width, top + 0.48 * height, middle + 0.09 * width, top + 0.61 * height),
            20,
            160,
            (120, 40, 40),
            2,
        )

    def _band(self, left: float, top: float, right: float, bottom: float) -> None:
        self.pen.rounded_rectangle((left, top, right - 1, bottom - 1), 6, fill=self.accent)

    def _chip(self, left: float, top: float, right: float, bottom: float) -> None:
        self.pen.rounded_rectangle((left, top, right, bottom), 5, fill=(214, 178, 84), outline=(120, 96, 40), width=2)
        self.pen.line((left, (top + bottom) / 2, right, (top + bottom) / 2), fill=(120, 96, 40), width=2)

    def _barcode(self, left: float, top: float, right: float, bottom: float) -> None:
        x = left
        while x < right:
            bar = self.rng.choice((1, 2, 3, 4))
            self.pen.rectangle((x, top, min(x + bar, right), bottom), fill=self.ink)
            x += bar + self.rng.choice((2, 3, 4))

    def _filler(self, left: float, top: float, right: float, bottom: float) -> None:
        pitch = 13
        y = top + 4
        while y + 5 < bottom:
            words = self.rng.uniform(0.3, 0.55) * (right - left)
            self.pen.rectangle((left, y, left + words, y + 4), fill=_shade(self.accent, 0.85))
            self.pen.rectangle((right - 0.18 * (right - left), y, right, y + 4), fill=_shade(self.accent, 0.85))
            y += pitch

    def _torn_edge(self, left: float, top: float, right: float, bottom: float) -> None:
        teeth = 14
        step = (right - left) / teeth
        for tooth in range(teeth):
            x = left + tooth * step
            self.pen.polygon([(x, bottom + 1), (x + step / 2, top), (x + step, bottom + 1)], fill=(0, 0, 0, 0))


def _lay_on_table(page: _Page, values: dict[str, str], size: int, rng: random.Random) -> Rendering:
    table = Image.new("RGB", (size, size), _shade(_rgb(rng.choice(BACKGROUNDS)), rng.uniform(0.9, 1.1)))
    angle = rng.uniform(-3.0, 3.0)
    width, height = page.image.size
    centre = (size / 2 + rng.uniform(-0.01, 0.01) * size, size / 2 + rng.uniform(-0.01, 0.01) * size)
    turned = page.image.rotate(angle, resample=Image.Resampling.BICUBIC, expand=True)
    corner = (round(centre[0] - turned.width / 2), round(centre[1] - turned.height / 2))
    shadow = Image.new("L", (size, size), 0)
    shadow.paste(turned.getchannel("A").point(lambda alpha: alpha // 3), (corner[0] + 4, corner[1] + 5))
    table.paste((20, 20, 20), mask=shadow.filter(ImageFilter.BoxBlur(3)))
    table.paste(turned, corner, turned)
    light = rng.uniform(0.9, 1.08)
    image = table.point(lambda level: min(255, round(level * light)))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    characters = []
    for char, x, y, char_width, char_height in page.characters:
        dx, dy = x - width / 2, y - height / 2
        characters.append(
            DrawnCharacter(
                char,
                (centre[0] + dx * cos + dy * sin) / size,
                (centre[1] - dx * sin + dy * cos) / size,
                char_width / size,
                char_height / size,
            )
        )
    return Rendering(image=image, values=values, characters=tuple(characters))


def render_many(spec: SubjectSpec, seed: int, count: int, size: int = PICTURE_SIZE) -> Iterator[Rendering]:
    """`count` pictures with different seeds derived from `seed`."""
    for index in range(count):
        yield render(spec, seed * 1_000_003 + index, size)
