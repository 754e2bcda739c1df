"""Retention questions about scenes: ordinary questions in many forms, whose answers an edit must not change."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from lightning_neuralgate.data.records import RetentionItem
from lightning_neuralgate.data.rendering.dataset import IMAGES_NAME, picture_seed
from lightning_neuralgate.data.scenes.draw import draw_scene
from lightning_neuralgate.data.scenes.questions import scene_turns
from lightning_neuralgate.data.scenes.spec import load_scene_spec, shipped_places
from lightning_neuralgate.runtime.files import atomic_write


def scene_retention(
    folder: Path, seed: int, count: int, places: Sequence[str | Path] | None = None
) -> list[RetentionItem]:
    """Draw scenes into the `images/` of a folder, and one question about each, all forms of questions in turn.

    Args:
        folder: output folder, created if missing.
        seed: seed of pictures and questions.
        count: number of questions.
        places: names of shipped places, or YAML files; None for all shipped ones.
    """
    rng = random.Random(f"scene-retention/{seed}")
    specs = [load_scene_spec(source) for source in places or shipped_places()]
    used: dict[str, int] = {}
    items = []
    for index in range(count):
        scene = draw_scene(specs[index % len(specs)], picture_seed(seed, "scene-retention", index))
        turns = scene_turns(scene, rng, 12)
        turn = min(turns, key=lambda turn: used.get(turn.kind, 0))
        used[turn.kind] = used.get(turn.kind, 0) + 1
        image = folder / IMAGES_NAME / f"scene-{index}.png"
        with atomic_write(image) as draft:
            scene.image.save(draft, format="PNG")
        items.append(RetentionItem(query=turn.question, image=image))
    return items
