from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.data.scenes.draw import Scene
from lightning_neuralgate.data.scenes.words import article, noun
from lightning_neuralgate.tasks.benchmarks.pope import CATEGORIES
from lightning_neuralgate.tasks.mini.pope import MOST_POPULAR, co_occurrence, draw_pope
from lightning_neuralgate.tasks.mini.words import absent, all_things

THINGS = {article(noun(thing)): thing for thing in all_things()}


def read(folder: Path, category: str) -> list[dict[str, Any]]:
    lines = (folder / f"mini_pope_{category}.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def thing_of(row: dict[str, Any]) -> str:
    return THINGS[row["text"].removeprefix("Is there ").removesuffix(" in the image?")]


@pytest.fixture
def drawn(tmp_path: Path, scenes: list[Scene]) -> tuple[Path, dict[str, Scene]]:
    draw_pope(tmp_path, 5)
    kept = [scene for scene in scenes if len(scene.shown()) >= 3]
    return tmp_path, {f"mini_{number:04d}.png": scene for number, scene in enumerate(kept)}


def test_labels_are_true_and_each_picture_has_three_of_each(drawn: tuple[Path, dict[str, Scene]]) -> None:
    folder, shown = drawn
    assert sorted(file.name for file in (folder / "images").iterdir()) == sorted(shown)
    positives = []
    for category in CATEGORIES:
        rows = read(folder, category)
        assert len(rows) == 108
        assert set(Counter((row["image"], row["label"]) for row in rows).values()) == {3}
        for row in rows:
            scene = shown[row["image"]]
            if row["label"] == "yes":
                assert thing_of(row) in scene.shown()
            else:
                assert absent([thing_of(row)], scene.shown())
        positives.append([row["text"] for row in rows if row["label"] == "yes"])
    assert positives[0] == positives[1] == positives[2]


def test_absent_things_are_those_of_the_category(drawn: tuple[Path, dict[str, Scene]]) -> None:
    folder, shown = drawn
    counts = Counter(name for scene in shown.values() for name in scene.shown())
    negatives = {
        category: [(thing_of(row), row["image"]) for row in read(folder, category) if row["label"] == "no"]
        for category in CATEGORIES
    }
    least = sorted(counts.values(), reverse=True)[MOST_POPULAR - 1]
    assert all(counts[name] >= least for name, _ in negatives["popular"])
    assert len({name for name, _ in negatives["popular"]}) > 6
    assert min(counts[name] for name, _ in negatives["random"]) == 0
    for image, scene in shown.items():
        together = co_occurrence(scene.shown())
        chosen = {name for name, other in negatives["adversarial"] if other == image}
        rest = set(absent(together, scene.shown())) - chosen
        assert min(together[name] for name in chosen) >= max(together[name] for name in rest)


def test_objects_of_a_place_occur_together() -> None:
    together = co_occurrence({"cow"})
    assert together["pig"] > together["tractor"] > 0
    assert together["laptop"] == 0
    assert "bus" not in together, "things with writing have no weights"
