"""The objects that scenes show: sprites rasterized from Noto Color Emoji, with their names, categories and colours."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_neuralgate.data.records import StrictModel
from lightning_neuralgate.data.rendering.page import rgb
from lightning_neuralgate.runtime.parsing import read_yaml

SPRITES_FOLDER = Path(__file__).parent / "sprites"
CELL = 80
"""Edge of a sprite in the atlas, in pixels."""
COLUMNS = 12
"""Sprites per row of the atlas."""
ANY_COLOUR = "any"
"""`SpriteSpec.colour` of a sprite that is drawn in a random one of `PAINTS`."""
PAINTS = {
    "red": "#d8202c", "orange": "#f08a1e", "yellow": "#f2d024", "green": "#2f9e44", "blue": "#2660c8",
    "purple": "#8038b4", "pink": "#f07ab0",
}  # fmt: skip
"""Colours of recoloured sprites."""
_SATURATED = 60
"""Pixels whose HSV saturation (0 to 255) is lower keep their colour: tyres, outlines, windows."""
_HUE_RANGE = 28
"""Pixels whose hue (0 to 255) differs more from the sprite's most frequent one keep their colour."""


class SpriteSpec(StrictModel):
    """An object of scenes.

    Attributes:
        emoji: the character that `recipes/draw_sprite_atlas.py` rasterizes.
        plural: "" for the name with an s.
        category: a word for what the object is, or "".
        colour: the one colour of the object, `any` if scenes draw it in a random colour, or "" if it has several.
    """

    emoji: str = ""
    plural: str = ""
    category: str = ""
    colour: str = ""


class UserSprite(StrictModel):
    """A picture file of the user as an object of a scene spec, see `SpriteSpec`."""

    file: Path
    plural: str = ""
    category: str = ""
    colour: str = ""


@lru_cache(maxsize=1)
def object_entries() -> Mapping[str, SpriteSpec]:
    """Return name -> description of the shipped objects, in the order of the atlas."""
    content = read_yaml(SPRITES_FOLDER / "objects.yaml").content
    return {name: SpriteSpec.model_validate(entry) for name, entry in content.items()}


def plural_of(name: str, entry: SpriteSpec | UserSprite) -> str:
    """Return the plural of an object's name."""
    return entry.plural or f"{name}s"


@lru_cache(maxsize=1)
def _atlas() -> Image.Image:
    with Image.open(SPRITES_FOLDER / "atlas.png") as atlas:
        return atlas.convert("RGBA")


@lru_cache(maxsize=1024)
def sprite(name: str, paint: str = "") -> Image.Image:
    """Return the picture of a shipped object (RGBA, trimmed), recoloured in one of `PAINTS` if `paint` is not empty."""
    index = list(object_entries()).index(name)
    left, top = index % COLUMNS * CELL, index // COLUMNS * CELL
    image = _atlas().crop((left, top, left + CELL, top + CELL))
    image = image.crop(image.getbbox())
    return _repaint(image, PAINTS[paint]) if paint else image


def _repaint(image: Image.Image, code: str) -> Image.Image:
    """Give the pixels of the most frequent hue another hue; lightness varies as before."""
    pixels = np.array(image.convert("RGB").convert("HSV")).astype(int)
    hue, saturation, value = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    alpha = image.getchannel("A")
    coloured = (saturation > _SATURATED) & (np.array(alpha) > 128)
    counts = np.bincount(hue[coloured], minlength=256)
    peak = int(np.argmax(sum(np.roll(counts, offset) for offset in range(-6, 7))))
    distance = np.minimum((hue - peak) % 256, (peak - hue) % 256)
    hit = coloured & (distance <= _HUE_RANGE)
    paint = colorsys.rgb_to_hsv(*(part / 255 for part in rgb(code)))
    brightest = max(1, int(value[hit].max(initial=1)))
    pixels[hit, 2] = np.clip(np.round(paint[2] * 255 * value[hit] / brightest), 0, 255)
    pixels[hit, 0], pixels[hit, 1] = round(paint[0] * 255), round(paint[1] * 255)
    painted = Image.fromarray(pixels.astype(np.uint8), "HSV").convert("RGB").convert("RGBA")
    painted.putalpha(alpha)
    return painted
