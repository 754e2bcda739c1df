"""Compose a page into a scene: table, rotation, shadow, lighting and blur, drawn from the spec's variations."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lightning_neuralgate.data.rendering.page import DrawnCharacter, Page, rgb, shade
from lightning_neuralgate.data.rendering.spec import VariationSpec

BACKGROUNDS = ("#b9a78f", "#8f9aa3", "#c8c2b4", "#7d8a78", "#a98e7a", "#9c93a8", "#d5d3cf", "#6e7480")
_SHADOW_COLOUR = (20, 20, 20)
_SHADOW_OPACITY_DIVISOR = 3
"""The shadow has a third of the page's opacity."""
_SHADOW_OFFSET = (4, 5)
"""Pixels to the right and down, as of light from the upper left."""
_SHADOW_BLUR = 3
"""Radius in pixels."""
_MIN_BLUR = 0.2
"""Radius in pixels; less is not visible."""


def compose_scene(
    page: Page, size: int, variations: VariationSpec, rng: random.Random
) -> tuple[Image.Image, list[DrawnCharacter]]:
    """Place a page on a table.

    Args:
        page: the drawn page.
        size: width and height of the picture, in pixels.
        variations: ranges of rotation (degrees), shift (fraction of `size`), light, falloff and blur (radius in pixels), and
            the choice of table colours and textures.
        rng: source of the variations.

    Returns:
        The square picture, and the page's characters with positions in pixels of that picture.
    """
    table = _table(size, variations, rng)
    angle = rng.uniform(-variations.rotation, variations.rotation)
    reach = variations.shift * size
    centre = (size / 2 + rng.uniform(-reach, reach), size / 2 + rng.uniform(-reach, reach))
    rotated = page.image.rotate(angle, resample=Image.Resampling.BILINEAR, expand=True)
    corner = (round(centre[0] - rotated.width / 2), round(centre[1] - rotated.height / 2))
    shadow_corner = (corner[0] + _SHADOW_OFFSET[0], corner[1] + _SHADOW_OFFSET[1])
    shadow = Image.new("L", (size, size), 0)
    shadow.paste(rotated.getchannel("A").point(lambda alpha: alpha // _SHADOW_OPACITY_DIVISOR), shadow_corner)
    table.paste(_SHADOW_COLOUR, mask=shadow.filter(ImageFilter.BoxBlur(_SHADOW_BLUR)))
    table.paste(rotated, corner, rotated)
    image = apply_light(table, variations, rng)
    blur = rng.uniform(0.0, variations.blur)
    if blur > _MIN_BLUR:
        image = image.filter(ImageFilter.BoxBlur(blur))
    return image, list(_rotate_characters(page, centre, angle))


def _table(size: int, variations: VariationSpec, rng: random.Random) -> Image.Image:
    colour = shade(rgb(rng.choice(variations.backgrounds or BACKGROUNDS)), rng.uniform(0.9, 1.1))
    table = Image.new("RGB", (size, size), colour)
    texture = rng.choice(variations.textures)
    if texture == "planks":
        pen = ImageDraw.Draw(table)
        width = rng.randrange(size // 7, size // 3)
        for x in range(rng.randrange(width), size + width, width):
            pen.rectangle((x - width, 0, x, size), fill=shade(colour, rng.uniform(0.93, 1.05)))
            pen.line((x, 0, x, size), fill=shade(colour, 0.75), width=2)
    elif texture == "cloth":
        pen = ImageDraw.Draw(table)
        step = rng.randrange(10, 26)
        for offset in range(0, size, step):
            pen.line((offset, 0, offset, size), fill=shade(colour, 0.92))
            pen.line((0, offset, size, offset), fill=shade(colour, 1.08))
    elif texture == "speckled":
        edge = size // 3
        noise = Image.frombytes("L", (edge, edge), rng.randbytes(edge * edge)).resize((size, size))
        table = Image.blend(table, Image.merge("RGB", [noise] * 3), 0.07)
    return table


def apply_light(image: Image.Image, variations: VariationSpec, rng: random.Random) -> Image.Image:
    """Apply a brightness level, and a linear falloff from one side to the other."""
    level, falloff = rng.uniform(*variations.light), rng.uniform(0.0, variations.gradient)
    ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize(image.size)
    ramp = ramp.point([min(255, round(255 * min(1.0, level) * (1.0 - falloff * step / 255))) for step in range(256)])
    image = ImageChops.multiply(image, Image.merge("RGB", [ramp] * 3))
    return image.point(lambda value: min(255, round(value * level))) if level > 1.0 else image


def _rotate_characters(page: Page, centre: tuple[float, float], angle: float) -> Iterator[DrawnCharacter]:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    width, height = page.image.size
    for character in page.characters:
        dx, dy = character.x - width / 2, character.y - height / 2
        yield replace(character, x=centre[0] + dx * cos + dy * sin, y=centre[1] - dx * sin + dy * cos)
