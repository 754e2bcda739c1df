from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_neuralgate.attacks.base import Context, Question
from lightning_neuralgate.attacks.pictures.in_scene import InScene
from lightning_neuralgate.data.image_files import read_image


def test_the_whole_picture_lies_in_a_larger_scene(
    ask: Callable[..., Question], context: Context, tmp_path: Path
) -> None:
    source = tmp_path / "source.png"
    Image.new("RGB", (300, 300), (255, 0, 255)).save(source)
    (prompt,) = InScene().prompts(ask(source), context)
    scene = read_image(prompt.picture)  # type: ignore[arg-type]
    assert prompt.text == ask(source).query
    assert scene.size == (429, 429)
    share = (np.asarray(scene) == (255, 0, 255)).all(2).mean()
    assert 0.4 < share < 0.7**2  # no part of it is cut off
