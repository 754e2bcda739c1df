"""What a user's own place brings along: numbers and picture files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lightning_neuralgate.data.scenes.draw import _own_sprite, draw_scene
from lightning_neuralgate.data.scenes.spec import load_scene_spec
from lightning_neuralgate.errors import DataFormatError
from tests.data.picture_files import FILES

PLACE = """
place: attic
background: {top: ["#aaaaaa"], bottom: ["#777777"]}
objects: {box: 1.0}
sprites: {box: {file: box.png}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    Image.new("RGBA", (20, 10), (200, 10, 10, 255)).save(tmp_path / "box.png")
    (tmp_path / "attic.yaml").write_text(PLACE)
    return tmp_path / "attic.yaml"


def test_a_users_sprite_is_turned_and_scaled_as_a_viewer_shows_it(tmp_path: Path, place: Path) -> None:
    assert draw_scene(load_scene_spec(place), 0, size=64).image.size == (64, 64)
    (tmp_path / "turned.jpg").write_bytes(FILES["turned, JPEG"]())
    sprite = _own_sprite(tmp_path / "turned.jpg")
    assert (sprite.mode, sprite.size) == ("RGBA", (16, 12))
    (tmp_path / "deep.png").write_bytes(FILES["grey of 16 bits, PNG"]())
    assert max(_own_sprite(tmp_path / "deep.png").getpixel((2, 2))[:3]) < 60  # type: ignore[index]


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0\nshowpage\n", b"", b"\x89PNG\r\n\x1a\n"])
def test_a_sprite_that_cannot_be_read_is_named(tmp_path: Path, place: Path, content: bytes) -> None:
    (tmp_path / "box.png").write_bytes(content)
    with pytest.raises(DataFormatError, match=r"box\.png"):
        draw_scene(load_scene_spec(place), 0, size=64, objects=["box"])


def test_a_sprite_of_which_nothing_can_be_seen_is_refused(tmp_path: Path, place: Path) -> None:
    Image.new("RGBA", (20, 10)).save(tmp_path / "box.png")
    with pytest.raises(DataFormatError, match=r"box\.png: every pixel is transparent"):
        draw_scene(load_scene_spec(place), 0, size=64, objects=["box"])


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("box: 1.0", "box: .inf", "attic.yaml, line 4"),
        ("box: 1.0", "box: 1e300", "attic.yaml, line 4"),
        ("box: 1.0", "box: -1", "attic.yaml, line 4: objects.box"),
        ("place: attic", "place: NO", "found the boolean False; put text in quotes"),
        ("objects:", "signs: [spaceship]\nobjects:", "signs or documents: no sign at"),
        ("objects:", "documents: [own.yaml]\nobjects:", "signs or documents: no subject spec at"),
        ("file: box.png", "file: ../../etc/passwd", "sprites.box.file: image path"),
        ("file: box.png", 'file: "a\\0b"', "sprites.box.file: image path"),
        ("file: box.png", f"file: {'x' * 300}.png", "sprites.box.file: image path"),
    ],
)
def test_a_wrong_place_is_refused_with_file_and_field(place: Path, old: str, new: str, field: str) -> None:
    place.write_text(PLACE.replace(old, new))
    with pytest.raises(DataFormatError, match=r"attic\.yaml") as caught:
        load_scene_spec(place)
    assert field in str(caught.value)
