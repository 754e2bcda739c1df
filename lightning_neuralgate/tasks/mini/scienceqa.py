"""Drawn ScienceQA: multiple choice with two to four choices, in parquet."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from lightning_neuralgate.data.scenes.draw import SceneObject
from lightning_neuralgate.data.scenes.words import plural
from lightning_neuralgate.tasks.mini.facts import (
    MOST_COUNTED,
    draw_colour,
    draw_count,
    draw_kind,
    draw_objects,
    draw_things,
    draw_writing,
)
from lightning_neuralgate.tasks.mini.pictures import Pictures
from lightning_neuralgate.tasks.mini.words import absent, all_things, documents
from lightning_neuralgate.tasks.sources import import_optional


class _Question(NamedTuple):
    image: Image.Image
    text: str
    right: str
    wrong: list[str]


class _Extreme(NamedTuple):
    """A question for the object with the greatest `measure`, which exceeds all others by at least `margin`."""

    text: str
    measure: Callable[[SceneObject], float]
    margin: float
    most_objects: int


def _edge(item: SceneObject) -> float:
    """Return the edge of a square as large as the object's box."""
    left, top, right, bottom = item.box
    return float(((right - left) * (bottom - top)) ** 0.5)


_EXTREMES = (
    _Extreme("Which object is farthest to the left?", lambda item: -item.centre[0], 0.15, 4),
    _Extreme("Which object is farthest to the right?", lambda item: item.centre[0], 0.15, 4),
    _Extreme("Which object is drawn the largest?", _edge, 0.06, 3),
)


def draw_scienceqa(folder: Path, seed: int, pictures: int = 120) -> None:
    """Draw the questions, one about each picture, into one parquet file."""
    source = Pictures("scienceqa", seed)
    topics = list(_TOPICS.items())
    rows: list[dict[str, Any]] = []
    for number in range(pictures):
        turn, place = divmod(number, len(topics))
        topic, draw = topics[place]
        question = draw(source, turn)
        wrong = source.rng.sample(question.wrong, min(source.rng.randint(1, 3), len(question.wrong)))
        choices = [question.right, *wrong]
        source.rng.shuffle(choices)
        content = BytesIO()
        question.image.save(content, format="PNG")
        rows.append(
            {
                "image": {"bytes": content.getvalue(), "path": None},
                "question": question.text,
                "choices": choices,
                "answer": choices.index(question.right),
                "hint": "",
                "task": "closed choice",
                "grade": "grade1",
                "subject": "drawn pictures",
                "topic": topic,
                "category": topic,
                "skill": "look at a picture",
                "lecture": "",
                "solution": "",
            }
        )
    folder.mkdir()
    import_optional("pyarrow.parquet").write_table(
        import_optional("pyarrow").Table.from_pylist(rows), folder / "test-00000-of-00001.parquet"
    )


def _things(pictures: Pictures, turn: int) -> _Question:
    if turn % 2:
        document = pictures.document()
        image, right = document.image, document.spec.subject
        wrong = absent(documents(), {right})
    else:
        scene = draw_things(pictures, 1)
        image, right = scene.image, pictures.rng.choice(sorted(scene.shown()))
        wrong = absent(all_things(), scene.shown())
    return _Question(image, "Which of these things does the picture contain?", right, wrong)


def _groups(pictures: Pictures, turn: int) -> _Question:
    fact = draw_kind(pictures)
    return _Question(fact.image, "To which group does the thing in the picture belong?", fact.truth, fact.others)


def _colours(pictures: Pictures, turn: int) -> _Question:
    fact = draw_colour(pictures, turn)
    return _Question(fact.image, f"Choose the colour of the {fact.thing} in the picture.", fact.truth, fact.others)


def _counts(pictures: Pictures, turn: int) -> _Question:
    fact = draw_count(pictures, 1 + turn % MOST_COUNTED)
    return _Question(fact.image, f"Which is the number of {plural(fact.thing)} here?", fact.truth, fact.others)


def _writing(pictures: Pictures, turn: int) -> _Question:
    fact = draw_writing(pictures, turn)
    return _Question(fact.image, f"Which of these is written on the {fact.thing}?", fact.truth, fact.others)


def _extremes(pictures: Pictures, turn: int) -> _Question:
    extreme = _EXTREMES[turn % len(_EXTREMES)]
    while True:
        scene = draw_objects(pictures, pictures.rng.randint(2, extreme.most_objects))
        first, second, *rest = sorted(scene.objects, key=extreme.measure, reverse=True)
        if extreme.measure(first) - extreme.measure(second) >= extreme.margin:
            return _Question(scene.image, extreme.text, first.name, [item.name for item in (second, *rest)])


_TOPICS: dict[str, Callable[[Pictures, int], _Question]] = {
    "things": _things,
    "groups": _groups,
    "colours": _colours,
    "counts": _counts,
    "writing": _writing,
    "extremes": _extremes,
}
