from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from lightning_neuralgate.data.scenes.draw import Scene, held_out_value
from lightning_neuralgate.data.scenes.sprites import object_entries
from lightning_neuralgate.data.scenes.words import noun, plural
from lightning_neuralgate.tasks.benchmarks.mme import read_mme
from lightning_neuralgate.tasks.item import BrokenItems
from lightning_neuralgate.tasks.mini import mme
from lightning_neuralgate.tasks.mini.facts import KINDS, draw_kind
from lightning_neuralgate.tasks.mini.pictures import Pictures
from lightning_neuralgate.tasks.mini.words import NUMBERS

OBJECTS = {noun(name): name for name in object_entries()}


@pytest.fixture
def pictures() -> Pictures:
    return Pictures("test", 1)


def test_each_subtask_has_a_yes_and_a_no_about_each_picture(tmp_path: Path) -> None:
    mme.draw_mme(tmp_path, 0, pictures=2)
    items = list(read_mme(tmp_path, BrokenItems()))
    assert Counter((item.fields["subtask"], item.truth) for item in items) == {
        (subtask, truth): 2
        for subtask in ("existence", "count", "position", "color", "OCR", "commonsense_reasoning")
        for truth in ("yes", "no")
    }  # fmt: skip
    assert all(item.prompt.endswith("? Please answer yes or no.") for item in items)


def test_position_needs_a_clear_margin_and_uses_all_relations(pictures: Pictures, scenes: list[Scene]) -> None:
    used = set()
    for number in range(8):
        _, right, wrong = mme._position(pictures, number)
        centres = {item.name: item.centre for item in scenes[-1].objects}
        found = re.fullmatch(r"Is the (.+) (on the left of|on the right of|above|below) the (.+) in the image\?", right)
        assert found
        first, relation, second = found.groups()
        axis = 1 if relation in ("above", "below") else 0
        distance = centres[OBJECTS[second]][axis] - centres[OBJECTS[first]][axis]
        assert (distance if relation in ("on the left of", "above") else -distance) >= mme.MARGIN
        opposite = {"on the left of": "on the right of", "above": "below"}
        opposite |= {there: here for here, there in opposite.items()}
        assert wrong == right.replace(relation, opposite[relation])
        used.add(relation)
    assert len(used) == 4


def test_counts_are_those_of_the_scene(pictures: Pictures, scenes: list[Scene]) -> None:
    for number in range(5):
        _, right, wrong = mme._count(pictures, number)
        counts = scenes[-1].counts()
        (name,) = [name for name in counts if right == _counted(name, counts[name])]
        assert counts[name] == number + 1
        assert wrong in [_counted(name, other) for other in range(1, 7) if other != counts[name]]


def _counted(name: str, number: int) -> str:
    if number == 1:
        return f"Is there only one {noun(name)} in this image?"
    return f"Are there {NUMBERS[number]} {plural(name)} in this image?"


def test_writing_is_kept_for_tests_and_the_wrong_text_has_its_pattern(pictures: Pictures, scenes: list[Scene]) -> None:
    things = set()
    for number in range(6):
        _, right, wrong = mme._ocr(pictures, number)
        (sign,) = scenes[-1].signs
        things.add(sign.name)
        truth, other = (question.split('"')[1] for question in (right, wrong))
        assert truth in sign.values.values()
        assert other != truth
        assert held_out_value(truth)
        assert held_out_value(other)
        assert re.sub(r"\d", "#", truth) == re.sub(r"\d", "#", other) or not re.search(r"\d", truth)
        assert right.endswith(f' on the {sign.name} in the picture "{truth}"?')
    assert things == {"bus", "house", "jersey", "poster", "price tag", "shop front"}, "a street sign has one test value"


def test_colours_are_those_of_the_thing(pictures: Pictures, scenes: list[Scene]) -> None:
    for number in (0, 2):
        _, right, wrong = mme._color(pictures, number)
        colours = {(item.colour, item.name) for item in scenes[-1].objects}
        colours |= {(thing.values["colour"], thing.name) for thing in scenes[-1].signs}
        shown = [f"{colour} {name} in the image?" for colour, name in colours]
        assert any(right.endswith(f" {text}") for text in shown)
        assert not any(wrong.endswith(f" {text}") for text in shown)


def test_kinds_exclude_each_other(pictures: Pictures, scenes: list[Scene]) -> None:
    fact = draw_kind(pictures)
    (item,) = scenes[-1].objects
    assert (item.name, item.category) == (fact.thing, fact.truth)
    assert sorted([fact.truth, *fact.others]) == sorted(KINDS)
