"""Drawn scenes: the same seed draws the same picture, everything in it is known, and tests are apart from training."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lightning_neuralgate.data.rendering.spec import load_subject_spec
from lightning_neuralgate.data.scenes.draw import Scene, draw_scene, held_out_value
from lightning_neuralgate.data.scenes.spec import load_scene_spec, load_sign_spec, shipped_places

PLACES = [load_scene_spec(name) for name in shipped_places()]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(PLACES[index % len(PLACES)], index) for index in range(90)]


@pytest.fixture(scope="module")
def held_out_scenes() -> list[Scene]:
    return [draw_scene(PLACES[index % len(PLACES)], index, held_out=True) for index in range(90)]


def test_same_seed_same_scene() -> None:
    first, again, other = (draw_scene(PLACES[0], seed) for seed in (5, 5, 6))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.objects == again.objects
    assert first.image.tobytes() != other.image.tobytes()


def test_nothing_overlaps_and_everything_is_inside(scenes: list[Scene]) -> None:
    for scene in scenes:
        boxes = [item.box for item in (*scene.objects, *scene.signs, *scene.documents)]
        assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in boxes)
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
        assert len(scene.objects) <= 6


def test_objects_are_where_their_boxes_are() -> None:
    full = draw_scene(load_scene_spec("garden"), 1, objects=["tomato"], signs=[], documents=[])
    pixels = np.array(full.image).astype(int)
    rows, columns = np.nonzero(pixels[..., 0] > pixels[..., 1] + 70)
    left, top, right, bottom = (share * full.image.width for share in full.objects[0].box)
    assert abs(columns.min() - left) < 5
    assert abs(columns.max() - right) < 7
    assert top < rows.min() < top + 25, "the stem is green"
    assert abs(rows.max() - bottom) < 7


def test_objects_belong_to_their_place_but_for_some_of_the_tests(
    scenes: list[Scene], held_out_scenes: list[Scene]
) -> None:
    assert all(item.name in scene.spec.objects for scene in scenes for item in scene.objects)
    strangers = [
        item.name for scene in held_out_scenes for item in scene.objects if item.name not in scene.spec.objects
    ]
    assert len(strangers) >= 5


def test_writing_of_tests_is_not_in_training(scenes: list[Scene], held_out_scenes: list[Scene]) -> None:
    for drawn, held_out in ((scenes, False), (held_out_scenes, True)):
        values = {
            scene_sign.values[name]
            for scene in drawn
            for scene_sign in scene.signs
            for name, field in scene_sign.spec.fields.items()
            if field.written
        }
        assert len(values) >= 10
        assert all(held_out_value(value) == held_out for value in values)


def test_characters_of_signs_and_documents_spell_their_values() -> None:
    scene = draw_scene(load_scene_spec("street"), 4, objects=["dog"], signs=[load_sign_spec("bus")], documents=[])
    bus = scene.signs[0]
    assert "".join(char.char for char in bus.characters) == bus.values["number"]
    left, top, right, bottom = bus.box
    assert all(left < char.x < right and top < char.y < bottom for char in bus.characters)
    two = draw_scene(
        load_scene_spec("office"), 4, documents=[load_subject_spec("passport"), load_subject_spec("receipt")]
    )
    assert [document.name for document in two.documents] == ["passport", "receipt"]


def test_given_objects_are_drawn_with_one_colour_per_name() -> None:
    scene = draw_scene(load_scene_spec("street"), 8, objects=["car", "car", "car", "tree"], signs=[], documents=[])
    assert scene.counts() == {"car": 3, "tree": 1}
    assert len({item.colour for item in scene.objects if item.name == "car"}) == 1
