"""What holds for all attacks that draw pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lightning_neuralgate.attacks import ATTACKS
from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question
from lightning_neuralgate.attacks.pictures.drawing import MAX_EDGE
from lightning_neuralgate.data.image_files import read_image
from lightning_neuralgate.errors import DataFormatError

DRAWING = [
    attack
    for attack in ATTACKS.values()
    if attack.family == "picture" and isinstance(attack, PromptAttack) and not attack.sanity
]


def prompt(attack: PromptAttack, question: Question, context: Context) -> Prompt:
    (only,) = attack.prompts(question, context)
    return only


def drawn(attack: PromptAttack, question: Question, context: Context) -> Path:
    file = prompt(attack, question, context).picture
    assert file is not None
    return file


def test_every_attack_draws_another_picture_and_the_same_one_in_every_run(
    ask: Callable[..., Question], context: Context, document: Path, tmp_path: Path
) -> None:
    again = dataclasses.replace(context, pictures=tmp_path / "again")
    pictures = {document.read_bytes()}
    for attack in DRAWING:
        first, second = drawn(attack, ask(), context), drawn(attack, ask(), again)
        assert first.relative_to(context.pictures) == second.relative_to(again.pictures)
        assert first.read_bytes() == second.read_bytes()
        pictures.add(first.read_bytes())
    assert len(pictures) == 1 + len(DRAWING) == 26


def test_questions_about_a_picture_share_its_files(ask: Callable[..., Question], context: Context) -> None:
    benign = ask(sensitive=False, query="What colour is the passport?")
    for attack in DRAWING:
        files = {drawn(attack, question, context) for question in (ask(), benign)}
        assert len(files) == (2 if attack.name == "written_question" else 1), attack.name
    other = drawn(ATTACKS["blur_weak"], context.questions[1], context)  # type: ignore[arg-type]
    assert other != drawn(ATTACKS["blur_weak"], ask(), context)  # type: ignore[arg-type]


def test_a_replaced_picture_is_drawn_again(ask: Callable[..., Question], context: Context, tmp_path: Path) -> None:
    source, attack = tmp_path / "source.png", DRAWING[0]
    Image.new("RGB", (30, 30), "red").save(source)
    red = drawn(attack, ask(source), context)
    Image.new("RGB", (30, 30), "blue").save(source)
    assert read_image(drawn(attack, ask(source), context)).getpixel((5, 5)) == (0, 0, 255)
    assert read_image(red).getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (1, 1)), ("L", (40, 30)), ("RGBA", (30, 40)), ("RGB", (3000, 2)), ("RGB", (2, 3000))]
)
def test_pictures_of_every_kind_and_size_are_drawn(
    ask: Callable[..., Question], context: Context, tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    source = tmp_path / "source.png"
    Image.new(mode, size).save(source)
    for attack in DRAWING:
        picture = read_image(drawn(attack, ask(source), context))
        assert min(picture.size) >= 1
        assert max(picture.size) <= 1.5 * MAX_EDGE, attack.name
        if mode == "RGBA" and attack.name == "crop_weak":
            assert picture.getpixel((15, 15)) == (255, 255, 255)  # transparent pixels are laid on white


def test_a_picture_that_cannot_be_read_is_named(ask: Callable[..., Question], context: Context, tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"record 7: picture .*missing\.png cannot be read"):
        drawn(DRAWING[0], ask(tmp_path / "missing.png", "7"), context)
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    with pytest.raises(DataFormatError, match=r"record 7: picture .*damaged\.png cannot be read"):
        drawn(DRAWING[0], ask(tmp_path / "damaged.png", "7"), context)
