"""Scene specs: the shipped places and signs, a user's own, and what is wrong with bad ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from lightning_neuralgate.data.scenes.draw import draw_scene
from lightning_neuralgate.data.scenes.spec import (
    load_scene_spec,
    load_sign_spec,
    shipped_places,
    shipped_signs,
)
from lightning_neuralgate.data.scenes.sprites import object_entries
from lightning_neuralgate.errors import DataFormatError

OWN = """
place: bathroom
background: {top: ["#dfeef2"], bottom: ["#b0c4cc"]}
objects: {duck: 2, towel: 1}
sprites: {towel: {file: towel.png, colour: white, category: cloth}}
signs: [label.yaml]
documents: [receipt]
"""
LABEL = """
thing: label
fields:
  colour: {phrase: colour, answer: "It is {value}.", choices: {red: "#cc2222"}}
  code: {phrase: code, answer: "The code is {value}.", pattern: "##", written: true}
layout: {size: [0.4, 0.3], elements: [{draw: value, field: code, box: [0.1, 0.2, 0.9, 0.8]}]}
"""


def own_spec(folder: Path, text: str = OWN, label: str = LABEL) -> Path:
    Image.new("RGBA", (30, 40), (250, 250, 250, 255)).save(folder / "towel.png")
    (folder / "label.yaml").write_text(label)
    (folder / "own.yaml").write_text(text)
    return folder / "own.yaml"


def test_every_shipped_place_loads_and_every_object_belongs_to_one() -> None:
    specs = [load_scene_spec(name) for name in shipped_places()]
    assert len(specs) >= 12
    assert {name for spec in specs for name in spec.objects} == set(object_entries())
    assert {sign.thing for spec in specs for sign in spec.sign_specs} == {
        load_sign_spec(name).thing for name in shipped_signs()
    }


def test_own_place_with_own_object_and_sign(tmp_path: Path) -> None:
    spec = load_scene_spec(own_spec(tmp_path))
    scene = draw_scene(spec, 3, objects=["towel", "duck"], signs=spec.sign_specs, documents=[])
    assert scene.shown() == {"towel", "duck", "label"}
    towel = next(item for item in scene.objects if item.name == "towel")
    assert (towel.plural, towel.category, towel.colour) == ("towels", "cloth", "white")
    x, y = (round(value * scene.image.width) for value in towel.centre)
    assert min(scene.image.getpixel((x, y))) > 150, "the picture file is in the scene"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("duck: 2", "unicorn: 2"), "unicorn"),
        (("duck: 2", "duck: -1"), "objects.duck"),
        (('"#dfeef2"', '"blue"'), "background.top"),
        (("file: towel.png", "file: ../towel.png"), "sprites.towel.file"),
        (("file: towel.png", "file: missing.png"), "missing.png"),
        (("place: bathroom", "spot: bathroom"), "place"),
    ],
)
def test_bad_places_name_file_and_field(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    path = own_spec(tmp_path, OWN.replace(*change))
    with pytest.raises(DataFormatError, match=re.escape(named)) as error:
        load_scene_spec(path)
    assert str(path) in str(error.value)


def test_bad_signs_name_file_and_field(tmp_path: Path) -> None:
    own_spec(tmp_path, label=LABEL.replace(", written: true", ""))
    with pytest.raises(DataFormatError, match=r"label\.yaml.*written"):
        load_sign_spec(tmp_path / "label.yaml")
    own_spec(tmp_path, label=LABEL.replace("field: code", "field: cod"))
    with pytest.raises(DataFormatError, match="'cod'"):
        load_sign_spec(tmp_path / "label.yaml")


def test_unknown_place_lists_the_shipped_ones() -> None:
    with pytest.raises(DataFormatError, match="kitchen"):
        load_scene_spec("moon")


def test_broken_own_sprite_names_the_file(tmp_path: Path) -> None:
    path = own_spec(tmp_path)
    (tmp_path / "towel.png").write_bytes(b"not a picture")
    with pytest.raises(DataFormatError, match=r"towel\.png"):
        draw_scene(load_scene_spec(path), 0, objects=["towel"], signs=[], documents=[])
