"""Retention questions about scenes, and contact sheets of places, as `neuralgate render` writes them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lightning_neuralgate.cli import main
from lightning_neuralgate.data.records import read_retention
from lightning_neuralgate.data.scenes.retention import scene_retention


def test_forms_take_turns_and_the_seed_decides(tmp_path: Path) -> None:
    items = scene_retention(tmp_path / "a", 3, 16)
    assert len({item.query for item in items}) == 16
    assert sum("yes or no" in item.query.lower() or item.query.startswith(("Is ", "Do ")) for item in items) >= 4
    assert any("A" in item.query and "B" in item.query for item in items)
    again = scene_retention(tmp_path / "b", 3, 16)
    assert [item.query for item in items] == [item.query for item in again]
    assert [item.query for item in scene_retention(tmp_path / "c", 4, 16)] != [item.query for item in items]
    assert (tmp_path / "a/images/scene-7.png").read_bytes() == (tmp_path / "b/images/scene-7.png").read_bytes()


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
