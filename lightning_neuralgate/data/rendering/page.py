"""Draw the elements of a document on a page, and record the position of each character of a value."""

from __future__ import annotations

import importlib.util
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lightning_neuralgate.data.rendering.spec import Box, DecorationElement, Font
from lightning_neuralgate.errors import MissingDependencyError

_FONTS: dict[Font, str] = {
    "sans": "DejaVuSans", "bold": "DejaVuSans-Bold", "serif": "DejaVuSerif-Bold", "mono": "DejaVuSansMono-Bold",
    "stix": "STIXGeneralBol",
}  # fmt: skip
_CELL = 0.74
"""Width of a character cell as a share of the font size; values are set in cells of equal width, as on forms."""


@dataclass(frozen=True)
class DrawnCharacter:
    """A character of a field's value: index within the value, centre (x, y) and size.

    In pixels on a `Page`, as shares of the picture's edge in a `Rendering`.
    """

    char: str
    field: str
    index: int
    x: float
    y: float
    width: float
    height: float


def rgb(code: str) -> tuple[int, int, int]:
    """Parse a colour code '#rrggbb'."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    """Return a lighter (factor > 1) or darker (factor < 1) colour."""
    red, green, blue = (max(0, min(255, round(part * factor))) for part in colour)
    return red, green, blue


@lru_cache(maxsize=512)
def load_font(style: Font, size: int) -> ImageFont.FreeTypeFont:
    """Load a font from matplotlib's data files, which are the same on every system."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "rendering needs the fonts of matplotlib: pip install 'lightning-neuralgate[demo]'"
        )
    fonts = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(fonts / f"{_FONTS[style]}.ttf"), size)


class Page:
    """A flat document: draws elements, and collects the positions of the values' characters in `characters`."""

    def __init__(self, width: int, height: int, colour: tuple[int, int, int], rng: random.Random) -> None:
        self.image = Image.new("RGBA", (width, height), (0, 0, 0, 0))
        self.pen = ImageDraw.Draw(self.image)
        self.rng = rng
        self.colour = colour
        dark = 0.3 * self.colour[0] + 0.59 * self.colour[1] + 0.11 * self.colour[2] < 128
        self.ink = (245, 240, 225) if dark else (25, 25, 35)
        self.accent = shade(self.colour, 1.5) if dark else shade(self.colour, 0.78)
        self.characters: list[DrawnCharacter] = []

    def sheet(self, radius: float) -> None:
        """Fill the sheet with the document's colour; `radius` of its corners as a share of the width."""
        width, height = self.image.size
        self.pen.rounded_rectangle((0, 0, width - 1, height - 1), radius * width, fill=self.colour)

    def text(self, text: str, box: Box, style: Font) -> None:
        """Write left-aligned text into a box, as large as it fits."""
        left, top, right, bottom = self._pixels(box)
        size = max(6, int((bottom - top) * 1.05))
        font = load_font(style, size)
        while font.getlength(text) > right - left and size > 6:
            size -= 1
            font = load_font(style, size)
        ascent, _ = font.getmetrics()
        cap_top = font.getbbox("H")[1]
        base = top + (bottom - top - (ascent - cap_top)) / 2 - cap_top
        self.pen.text((left, base), text, font=font, fill=self.ink)

    def value(self, field: str, label: str, value: str, box: Box, style: Font) -> None:
        """Write a field's value, one character per cell, with an optional small label above it."""
        left, top, right, bottom = box
        split = top + (bottom - top) * (0.27 if label else 0.0)
        if label:
            self.text(label, (left, top, right, split), "sans")
        self._characters(field, value, (left, split, right, bottom), style)

    def emblem(self, shape: str, box: Box, colour: tuple[int, int, int] | None = None) -> None:
        """Draw one of `SHAPES` in the centre of a box."""
        left, top, right, bottom = self._pixels(box)
        fill = colour or self.ink
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
            points, inner = (3, None) if shape == "triangle" else (5, 0.42)
            self.pen.polygon(_points(x, y, radius, points, inner), fill=fill)

    def rectangle(self, box: Box, fill: str, radius: float) -> None:
        """Draw a filled rectangle; `radius` of its corners as a share of the page's width."""
        self.pen.rounded_rectangle(self._pixels(box), radius * self.image.width, fill=self._fill(fill))

    def ellipse(self, box: Box, fill: str) -> None:
        """Draw a filled ellipse."""
        self.pen.ellipse(self._pixels(box), fill=self._fill(fill))

    def polygon(self, points: list[tuple[float, float]], fill: str) -> None:
        """Draw a filled polygon."""
        width, height = self.image.size
        self.pen.polygon([(x * width, y * height) for x, y in points], fill=self._fill(fill))

    def decorate(self, element: DecorationElement) -> None:
        """Draw a decoration without a value, such as a photo or a barcode."""
        getattr(self, f"_{element.draw}")(*self._pixels(element.box))

    def _pixels(self, box: Box) -> tuple[float, float, float, float]:
        width, height = self.image.size
        return box[0] * width, box[1] * height, box[2] * width, box[3] * height

    def _fill(self, name: str) -> tuple[int, int, int]:
        return (
            rgb(name) if name.startswith("#") else {"body": self.colour, "accent": self.accent, "ink": self.ink}[name]
        )

    def _characters(self, field: str, value: str, box: Box, style: Font) -> None:
        left, top, right, bottom = self._pixels(box)
        size = max(6, min(int((bottom - top) * 1.22), int((right - left) / (_CELL * len(value)))))
        pitch = min((right - left) / len(value), _CELL * size * 1.12)
        font = load_font(style, size)
        ascent, _ = font.getmetrics()
        cap_top = font.getbbox("H")[1]
        cap_height = ascent - cap_top
        base = top + (bottom - top - cap_height) / 2 - cap_top
        for index, char in enumerate(value):
            x = left + (index + 0.5) * pitch
            self.pen.text((x - font.getlength(char) / 2, base), char, font=font, fill=self.ink)
            middle = base + cap_top + cap_height / 2
            self.characters.append(DrawnCharacter(char, field, index, x, middle, pitch, cap_height))

    def _photo(self, left: float, top: float, right: float, bottom: float) -> None:
        rng = self.rng
        skin = rng.choice(((236, 196, 160), (198, 146, 105), (141, 92, 62), (247, 214, 186)))
        hair = rng.choice(((40, 28, 20), (92, 60, 30), (180, 140, 70), (120, 120, 120)))
        shirt = rng.choice(((60, 70, 90), (120, 60, 60), (230, 230, 230), (50, 90, 70)))
        width, height = round(right - left), round(bottom - top)
        photo = Image.new("RGB", (width, height), (206, 216, 224))
        pen = ImageDraw.Draw(photo)
        pen.ellipse((0.08 * width, 0.66 * height, 0.92 * width, 1.34 * height), fill=shirt)
        pen.ellipse((0.24 * width, 0.10 * height, 0.76 * width, 0.56 * height), fill=hair)
        pen.ellipse((0.29 * width, 0.19 * height, 0.71 * width, 0.70 * height), fill=skin)
        for eye in (0.41, 0.59):
            pen.ellipse((eye * width - 2, 0.40 * height, eye * width + 2, 0.40 * height + 4), fill=(30, 30, 30))
        pen.rectangle((0, 0, width - 1, height - 1), outline=self.ink, width=2)
        self.image.paste(photo, (round(left), round(top)))

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
        pitch = 11
        y = top + 3
        while y + 4 < bottom:
            words = self.rng.uniform(0.3, 0.75) * (right - left)
            self.pen.rectangle((left, y, left + words, y + 3), fill=shade(self.accent, 0.85))
            self.pen.rectangle((right - 0.18 * (right - left), y, right, y + 3), fill=shade(self.accent, 0.85))
            y += pitch

    def _torn_edge(self, left: float, top: float, right: float, bottom: float) -> None:
        teeth = 14
        step = (right - left) / teeth
        for tooth in range(teeth):
            x = left + tooth * step
            self.pen.polygon([(x, bottom + 1), (x + step / 2, top), (x + step, bottom + 1)], fill=(0, 0, 0, 0))


def _points(x: float, y: float, radius: float, points: int, inner: float | None) -> list[tuple[float, float]]:
    """Return the corners of a regular polygon, or of a star whose inner corners are at `inner` times the radius."""
    corners = []
    for step in range(points * 2):
        if step % 2 and inner is None:
            continue
        reach = radius * (inner if step % 2 and inner else 1.0)
        angle = math.pi * step / points - math.pi / 2
        corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return corners
