"""Retention questions about scenes, and contact sheets of places, as `neuralgate render` writes them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lightning_neuralgate.cli import main
from lightning_neuralgate.data.records import read_retention
from lightning_neuralgate.data.scenes.retention import scene_retention


def test_forms_take_turns_and_the_seed_decides() -> None:
    pictures, questions = zip(*scene_retention(3, 16), strict=True)
    assert len(set(questions)) == 16
    assert sum("yes or no" in question.lower() or question.startswith(("Is ", "Do ")) for question in questions) >= 4
    assert any("A" in question and "B" in question for question in questions)
    again = list(scene_retention(3, 16))
    assert [question for _, question in again] == list(questions)
    assert again[7][0].tobytes() == pictures[7].tobytes()
    assert [question for _, question in scene_retention(4, 16)] != list(questions)


def test_render_writes_scene_questions_and_sheets(tmp_path: Path) -> None:
    small = ["--edit_records", "1", "--test_records", "1", "--edit_pairs", "1", "--test_pairs", "1"]
    main(
        ["render", "--out", str(tmp_path / "data"), *small, "--subjects", "[passport]", "--unseen", "[receipt]",
         "--scene_questions", "5", "--places", "[kitchen]", "--contact_sheets", str(tmp_path / "sheets")]
    )  # fmt: skip
    items = read_retention(tmp_path / "data/retention.jsonl", tmp_path / "data")
    scenes = [item for item in items if item.image and item.image.name.startswith("scene-")]
    assert len(scenes) == 5
    assert len(items) > 5
    with Image.open(tmp_path / "sheets/place-kitchen.png") as sheet:
        assert sheet.width > 700
