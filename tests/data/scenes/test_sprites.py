"""The sprites of scenes."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_neuralgate.data.rendering.page import rgb
from lightning_neuralgate.data.scenes.sprites import (
    ANY_COLOUR,
    CELL,
    COLUMNS,
    PAINTS,
    SPRITES_FOLDER,
    object_entries,
    plural_of,
    sprite,
)


def test_every_object_has_its_own_sprite() -> None:
    pictures = {}
    for name in object_entries():
        picture = sprite(name)
        assert max(picture.size) > 0.9 * CELL, name
        assert np.array(picture.getchannel("A")).mean() > 20, name
        pictures[picture.tobytes()] = name
    assert len(pictures) == len(object_entries()) >= 80


def test_atlas_is_small_and_fits_the_objects() -> None:
    assert (SPRITES_FOLDER / "atlas.png").stat().st_size < 2e6
    assert -(-len(object_entries()) // COLUMNS) * COLUMNS >= len(object_entries())


@pytest.mark.parametrize("name", [name for name, entry in object_entries().items() if entry.colour == ANY_COLOUR])
def test_painted_sprites_are_mostly_of_their_colour(name: str) -> None:
    shares = {}
    for paint, code in PAINTS.items():
        pixels = np.array(sprite(name, paint)).reshape(-1, 4).astype(int)
        solid = pixels[pixels[:, 3] > 128][:, :3]
        distance = np.abs(_hue(solid) - _hue(np.array([rgb(code)]))[0])
        shares[paint] = float((np.minimum(distance, 256 - distance) <= 4).mean())
    assert min(shares.values()) > 0.2, shares


def _hue(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.array(Image.fromarray(pixels.astype(np.uint8)[None], "RGB").convert("HSV"))[0, :, 0].astype(int)


def test_plurals() -> None:
    entries = object_entries()
    assert [plural_of(name, entries[name]) for name in ("dog", "sheep", "knife", "glasses")] == [
        "dogs", "sheep", "knives", "pairs of glasses"
    ]  # fmt: skip
