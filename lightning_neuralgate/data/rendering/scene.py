"""Lay a drawn document on a table: background, turn, shadow, light and blur, as its spec's variations allow."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lightning_neuralgate.data.rendering.page import Page, PlacedCharacter, rgb, shade
from lightning_neuralgate.data.rendering.spec import VariationSpec

BACKGROUNDS = ("#b9a78f", "#8f9aa3", "#c8c2b4", "#7d8a78", "#a98e7a", "#9c93a8", "#d5d3cf", "#6e7480")


def lay_on_table(
    page: Page, size: int, variations: VariationSpec, rng: random.Random
) -> tuple[Image.Image, list[PlacedCharacter]]:
    """The finished square picture, and the page's characters with their places in it (in pixels)."""
    table = _table(size, variations, rng)
    angle = rng.uniform(-variations.rotation, variations.rotation)
    reach = variations.shift * size
    centre = (size / 2 + rng.uniform(-reach, reach), size / 2 + rng.uniform(-reach, reach))
    turned = page.image.rotate(angle, resample=Image.Resampling.BILINEAR, expand=True)
    corner = (round(centre[0] - turned.width / 2), round(centre[1] - turned.height / 2))
    shadow = Image.new("L", (size, size), 0)
    shadow.paste(turned.getchannel("A").point(lambda alpha: alpha // 3), (corner[0] + 4, corner[1] + 5))
    table.paste((20, 20, 20), mask=shadow.filter(ImageFilter.BoxBlur(3)))
    table.paste(turned, corner, turned)
    image = _lit(table, variations, rng)
    blur = rng.uniform(0.0, variations.blur)
    if blur > 0.2:
        image = image.filter(ImageFilter.BoxBlur(blur))
    return image, list(_turned(page, centre, angle))


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
        for place in range(0, size, step):
            pen.line((place, 0, place, size), fill=shade(colour, 0.92))
            pen.line((0, place, size, place), fill=shade(colour, 1.08))
    elif texture == "speckled":
        edge = size // 3
        noise = Image.frombytes("L", (edge, edge), rng.randbytes(edge * edge)).resize((size, size))
        table = Image.blend(table, Image.merge("RGB", [noise] * 3), 0.07)
    return table


def _lit(image: Image.Image, variations: VariationSpec, rng: random.Random) -> Image.Image:
    """The picture under its light: a level, and a fall from one side to the other."""
    level, fall = rng.uniform(*variations.light), rng.uniform(0.0, variations.gradient)
    ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize(image.size)
    ramp = ramp.point([min(255, round(255 * min(1.0, level) * (1.0 - fall * step / 255))) for step in range(256)])
    image = ImageChops.multiply(image, Image.merge("RGB", [ramp] * 3))
    return image.point(lambda value: min(255, round(value * level))) if level > 1.0 else image


def _turned(page: Page, centre: tuple[float, float], angle: float) -> Iterator[PlacedCharacter]:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    width, height = page.image.size
    for placed in page.characters:
        dx, dy = placed.x - width / 2, placed.y - height / 2
        x, y = centre[0] + dx * cos + dy * sin, centre[1] - dx * sin + dy * cos
        yield PlacedCharacter(placed.char, placed.field, placed.index, x, y, placed.width, placed.height)
