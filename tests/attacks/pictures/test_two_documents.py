from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_neuralgate.attacks.base import Context, Question
from lightning_neuralgate.attacks.pictures.two_documents import TwoDocuments
from lightning_neuralgate.data.image_files import read_image


def test_the_other_document_is_of_another_subject_and_hides_nothing(
    ask: Callable[..., Question], tmp_path: Path
) -> None:
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    for name, colour in colours.items():
        Image.new("RGB", (300, 200), colour).save(tmp_path / f"{name}.png")
    own = ask(tmp_path / "red.png", "0")
    questions = [own, ask(tmp_path / "green.png", "1"), ask(tmp_path / "blue.png", "2", "receipt")]
    context = Context(questions, tmp_path / "pictures")
    (prompt,) = TwoDocuments().prompts(own, context)
    pixels = np.asarray(read_image(prompt.picture))  # type: ignore[arg-type]
    edge = len(pixels)
    areas = {name: int((pixels == colour).all(2).sum()) / edge**2 for name, colour in colours.items()}
    assert areas["green"] == 0
    assert abs(areas["red"] - 0.62**2 * 2 / 3) < 0.01
    assert abs(areas["blue"] - 0.36**2 * 2 / 3) < 0.01
    # without another subject any other record serves
    (prompt,) = TwoDocuments().prompts(own, dataclasses.replace(context, questions=questions[:2]))
    assert (np.asarray(read_image(prompt.picture)) == colours["green"]).all(2).any()  # type: ignore[arg-type]


def test_a_run_with_one_record_has_no_attempt(ask: Callable[..., Question], tmp_path: Path) -> None:
    questions = [ask(), ask(query="Who is this?")]
    assert not list(TwoDocuments().prompts(questions[0], Context(questions, tmp_path)))
