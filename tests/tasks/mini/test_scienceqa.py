from __future__ import annotations

from collections import Counter
from pathlib import Path

from lightning_neuralgate.data.scenes.draw import Scene
from lightning_neuralgate.tasks.benchmarks.scienceqa import read_scienceqa
from lightning_neuralgate.tasks.item import BrokenItems
from lightning_neuralgate.tasks.mini import scienceqa
from lightning_neuralgate.tasks.mini.pictures import Pictures


def test_questions_have_two_to_four_different_choices(tmp_path: Path) -> None:
    scienceqa.draw_scienceqa(tmp_path / "set", 0, pictures=24)
    items = list(read_scienceqa(tmp_path / "set", BrokenItems()))
    assert len(items) == 24
    choices = [item.fields["choices"] for item in items]
    assert set(map(len, choices)) == {2, 3, 4}
    assert all(len(set(words)) == len(words) for words in choices)
    assert len(Counter(item.truth for item in items)) >= 3


def test_the_extreme_object_is_clearly_so(scenes: list[Scene]) -> None:
    pictures = Pictures("test", 2)
    for turn, value in ((0, lambda box: -box[0] - box[2]), (1, lambda box: box[0] + box[2])):
        question = scienceqa._extremes(pictures, turn)
        boxes = {item.name: item.box for item in scenes[-1].objects}
        assert {question.right, *question.wrong} == set(boxes)
        assert min(value(boxes[question.right]) - value(boxes[name]) for name in question.wrong) >= 2 * 0.15
    question = scienceqa._extremes(pictures, 2)
    boxes = {item.name: item.box for item in scenes[-1].objects}
    areas = {name: (box[2] - box[0]) * (box[3] - box[1]) for name, box in boxes.items()}
    assert max(areas, key=lambda name: areas[name]) == question.right


def test_things_and_documents_are_in_the_picture(scenes: list[Scene]) -> None:
    pictures = Pictures("test", 3)
    question = scienceqa._things(pictures, 0)
    assert question.right in scenes[-1].shown()
    assert not set(question.wrong) & scenes[-1].shown()
    question = scienceqa._things(pictures, 1)
    assert question.right == "bank card"
    assert {"passport", "driver licence"} < set(question.wrong)
