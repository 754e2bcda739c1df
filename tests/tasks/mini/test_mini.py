from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_neuralgate.data.records import read_records
from lightning_neuralgate.data.rendering import questions as rendered
from lightning_neuralgate.tasks import mini as mini_package
from lightning_neuralgate.tasks.item import BrokenItems
from lightning_neuralgate.tasks.mini.mllmguard import draw_mllmguard
from lightning_neuralgate.tasks.mini.mme import draw_mme
from lightning_neuralgate.tasks.mini.pope import draw_pope
from lightning_neuralgate.tasks.mini.scienceqa import draw_scienceqa
from lightning_neuralgate.tasks.options import mini_sources, task_names


def test_mini_sets_are_complete_and_balanced(mini: Path) -> None:
    sources, data = mini_sources(mini)
    items = {task: list(source(BrokenItems())) for task, source in sources.read(task_names("all"), data).items()}
    assert {task: len(found) for task, found in items.items()} == {
        "privacy_pair": 72, "pope": 324, "mme": 240, "scienceqa": 120, "mllmguard": 100, "over_refusal": 234
    }  # fmt: skip
    assert Counter(item.fields["category"] for item in items["pope"]) == {
        "random": 108,
        "popular": 108,
        "adversarial": 108,
    }
    for task in ("pope", "mme"):
        assert Counter(item.truth for item in items[task])["yes"] == len(items[task]) / 2
    assert Counter(item.fields["dimension"] for item in items["mllmguard"]) == {"privacy": 50, "legality": 50}
    assert all(item.truth for item in items["mllmguard"])
    letters = Counter(item.truth for item in items["scienceqa"])
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 60
    records = read_records(mini / "privacy_pair" / "records.jsonl", mini / "privacy_pair")
    assert [len(split) for split in (records.test, records.unseen_attributes, records.unseen_subjects)] == [6, 6, 6]


@pytest.mark.parametrize(
    ("draw", "pictures"), [(draw_pope, 2), (draw_mme, 1), (draw_scienceqa, 6), (draw_mllmguard, 1)]
)
def test_a_seed_determines_a_set(draw: Callable[..., None], pictures: int, tmp_path: Path) -> None:
    files = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        draw(tmp_path / name, seed, pictures=pictures)
        found = (file for file in (tmp_path / name).rglob("*") if file.is_file())
        files.append({file.relative_to(tmp_path / name): file.read_bytes() for file in found})
    assert files[0] == files[1] != files[2]


def test_all_questions_can_be_listed_and_none_is_one_of_the_trainings(
    mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(folder: Path, seed: int) -> None:
        assert seed == 0
        shutil.copytree(mini, folder)

    monkeypatch.setattr(mini_package, "render_mini", copy)
    questions = list(mini_package.mini_questions())
    assert Counter(task for task, _ in questions)["pope"] == 324
    texts = {text for task, text in questions if task in ("pope", "mme", "scienceqa", "mllmguard")}
    assert {"Is the thing in the image an animal?", "Which object is drawn the largest?"} <= texts
    assert not any("yes or no" in text or "\n" in text for text in texts)
    trained = {
        *rendered.PICTURE_QUESTIONS,
        *rendered.SHAPE_QUESTIONS,
        *rendered.SHAPE_COLOUR_QUESTIONS,
        *rendered.ORDINARY_QUESTIONS,
    }
    assert not trained & texts
