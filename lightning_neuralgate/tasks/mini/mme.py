"""Drawn MME: six subtasks, each question in the owner's wording, one with Yes and one with No about each picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from lightning_neuralgate.data.scenes.draw import SceneObject
from lightning_neuralgate.data.scenes.words import article, noun, plural
from lightning_neuralgate.tasks.mini.facts import (
    MOST_COUNTED,
    draw_colour,
    draw_count,
    draw_kind,
    draw_objects,
    draw_things,
    draw_writing,
)
from lightning_neuralgate.tasks.mini.pictures import Pictures, save_picture
from lightning_neuralgate.tasks.mini.words import absent, all_things

END = " Please answer yes or no."
MARGIN = 0.2
"""Least distance of two centres for "on the left of" and the like, as a share of the picture's edge."""

Questions = tuple[Image.Image, str, str]
"""A picture, a question with the answer yes, and one with no."""


def draw_mme(folder: Path, seed: int, pictures: int = 20) -> None:
    """Draw `<subtask>/images/*.png` and `<subtask>/questions_answers_YN/*.txt`."""
    for subtask, draw in _SUBTASKS.items():
        source = Pictures(f"mme/{subtask}", seed)
        for number in range(pictures):
            image, right, wrong = draw(source, number)
            save_picture(image, folder / subtask / "images" / f"{number:04d}.png")
            text = folder / subtask / "questions_answers_YN" / f"{number:04d}.txt"
            text.parent.mkdir(exist_ok=True)
            text.write_text(f"{right}{END}\tYes\n{wrong}{END}\tNo\n", encoding="utf-8")


def _existence(pictures: Pictures, number: int) -> Questions:
    scene = draw_things(pictures, 1)
    shown = pictures.rng.choice(sorted(scene.shown()))
    other = pictures.rng.choice(absent(all_things(), scene.shown()))
    right, wrong = (f"Is there {article(noun(thing))} in this image?" for thing in (shown, other))
    return scene.image, right, wrong


def _count(pictures: Pictures, number: int) -> Questions:
    fact = draw_count(pictures, 1 + number % MOST_COUNTED)
    right, wrong = (
        f"Is there only one {noun(fact.thing)} in this image?"
        if count == "one"
        else f"Are there {count} {plural(fact.thing)} in this image?"
        for count in (fact.truth, pictures.rng.choice(fact.others))
    )
    return fact.image, right, wrong


def _position(pictures: Pictures, number: int) -> Questions:
    axis = number % 2
    relations = [("on the left of", "on the right of"), ("above", "below")][axis]
    while True:
        scene = draw_objects(pictures, pictures.rng.randint(2, 3))
        first, second = pictures.rng.sample(scene.objects, 2)
        if (number // 2 % 2 == 0) != (first.centre[axis] < second.centre[axis]):
            first, second = second, first
        if abs(first.centre[axis] - second.centre[axis]) >= MARGIN:
            right, wrong = relations if first.centre[axis] < second.centre[axis] else relations[::-1]
            return scene.image, _relation(first, right, second), _relation(first, wrong, second)


def _relation(first: SceneObject, relation: str, second: SceneObject) -> str:
    return f"Is the {noun(first.name)} {relation} the {noun(second.name)} in the image?"


def _color(pictures: Pictures, number: int) -> Questions:
    fact = draw_colour(pictures, number)
    right, wrong = (
        f"Is there {article(colour)} {fact.thing} in the image?"
        for colour in (fact.truth, pictures.rng.choice(fact.others))
    )
    return fact.image, right, wrong


def _ocr(pictures: Pictures, number: int) -> Questions:
    fact = draw_writing(pictures, number)
    right, wrong = (
        f'Is the {fact.attribute} on the {fact.thing} in the picture "{value}"?'
        for value in (fact.truth, pictures.rng.choice(fact.others))
    )
    return fact.image, right, wrong


def _commonsense_reasoning(pictures: Pictures, number: int) -> Questions:
    fact = draw_kind(pictures)
    right, wrong = (
        f"Is the thing in the image {_of_kind(kind)}?" for kind in (fact.truth, pictures.rng.choice(fact.others))
    )
    return fact.image, right, wrong


def _of_kind(kind: str) -> str:
    return {"furniture": "a piece of furniture", "clothing": "a piece of clothing"}.get(kind, article(kind))


_SUBTASKS: dict[str, Callable[[Pictures, int], Questions]] = {
    "existence": _existence,
    "count": _count,
    "position": _position,
    "color": _color,
    "OCR": _ocr,
    "commonsense_reasoning": _commonsense_reasoning,
}
