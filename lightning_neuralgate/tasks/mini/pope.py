"""Drawn POPE: one set of pictures, and the same positive questions in the three categories, as in the original.

The categories differ in the absent things: `random` takes any, `popular` some of those that most pictures of the set show,
and `adversarial` those that occur most with what is shown.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lightning_neuralgate.data.scenes.words import article, noun
from lightning_neuralgate.tasks.mini.facts import draw_things
from lightning_neuralgate.tasks.mini.pictures import Pictures, save_picture
from lightning_neuralgate.tasks.mini.words import absent, all_things, places

PER_PICTURE = 3
"""Questions with the answer yes, and as many with no, about a picture."""
MOST_POPULAR = 12
"""Number of things that are popular; with the first three alone, `popular` would be a test of three things."""


def draw_pope(folder: Path, seed: int, pictures: int = 18) -> None:
    """Draw three files of questions, `mini_pope_{random,popular,adversarial}.json`, and the pictures in `images/`."""
    source = Pictures("pope", seed)
    scenes = [draw_things(source, PER_PICTURE) for _ in range(pictures)]
    names = [
        save_picture(scene.image, folder / "images" / f"mini_{number:04d}.png") for number, scene in enumerate(scenes)
    ]
    shown = [source.rng.sample(sorted(scene.shown()), PER_PICTURE) for scene in scenes]
    things = source.rng.sample(all_things(), len(all_things()))  # equally frequent things are in no special order
    frequent = Counter(name for scene in scenes for name in scene.shown())
    popular = sorted(things, key=lambda name: -frequent[name])
    for category in ("random", "popular", "adversarial"):
        rows: list[dict[str, Any]] = []
        for image, scene, present in zip(names, scenes, shown, strict=True):
            ranked: Sequence[str] = source.rng.sample(things, len(things))
            if category == "popular":
                ranked = [*source.rng.sample(popular[:MOST_POPULAR], MOST_POPULAR), *popular[MOST_POPULAR:]]
            elif category == "adversarial":
                together = co_occurrence(scene.shown())
                ranked = sorted(things, key=lambda name: -together.get(name, 0.0))
            missing = absent(ranked, scene.shown())[:PER_PICTURE]
            for pair in zip(present, missing, strict=True):
                for thing, label in zip(pair, ("yes", "no"), strict=True):
                    text = f"Is there {article(noun(thing))} in the image?"
                    rows.append({"question_id": len(rows) + 1, "image": image, "text": text, "label": label})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"mini_pope_{category}.json").write_text(lines, encoding="utf-8")


def co_occurrence(shown: Collection[str]) -> dict[str, float]:
    """Return how often each object occurs with what is shown, as far as the places' weights say.

    The sum over all places of (share of the weight that is on the shown objects) times (share that is on the object).
    """
    together: defaultdict[str, float] = defaultdict(float)
    for place in places():
        total = sum(place.objects.values())
        fitting = sum(place.objects.get(name, 0.0) for name in sorted(shown)) / total
        for name, weight in place.objects.items():
            together[name] += fitting * weight / total
    return together
