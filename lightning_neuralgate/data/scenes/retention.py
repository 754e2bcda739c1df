"""Retention questions about scenes: ordinary questions in many forms, whose answers an edit must not change."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from lightning_neuralgate.data.rendering.dataset import picture_seed
from lightning_neuralgate.data.scenes.draw import draw_scene
from lightning_neuralgate.data.scenes.questions import scene_turns
from lightning_neuralgate.data.scenes.spec import load_scene_spec, shipped_places


def scene_retention(
    seed: int, count: int, places: Sequence[str | Path] | None = None
) -> Iterator[tuple[Image.Image, str]]:
    """Yield scenes with one question about each, all forms of questions in turn, for `render_retention`.

    Args:
        seed: seed of pictures and questions.
        count: number of questions.
        places: names of shipped places, or YAML files; None for all shipped ones.
    """
    rng = random.Random(f"scene-retention/{seed}")
    specs = [load_scene_spec(source) for source in places or shipped_places()]
    used: Counter[str] = Counter()
    for index in range(count):
        # no documents, whose questions may ask for what an edit has to refuse
        scene = draw_scene(specs[index % len(specs)], picture_seed(seed, "scene-retention", index), documents=())
        turn = min(scene_turns(scene, rng, 12), key=lambda turn: used[turn.kind])
        used[turn.kind] += 1
        yield scene.image, turn.question
