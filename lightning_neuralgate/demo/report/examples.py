"""Select the pictures that the report shows, independently of the answers, and make their thumbnails."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, TypeVar

from lightning_neuralgate.data.image_files import read_image
from lightning_neuralgate.data.records import resolve_inside
from lightning_neuralgate.demo.report.formatting import MODEL_NAMES, SPLIT_NAMES
from lightning_neuralgate.evaluation.answers import JudgedAnswer

T = TypeVar("T")

MAX_EXAMPLES = 20
THUMBNAIL_SIZE = 192
"""Maximum width and height, in pixels."""
SELECTION_RULE = (
    f"The pictures are selected by a fixed rule that does not depend on the answers: round-robin over splits and subjects, "
    f"in order of record id, up to {MAX_EXAMPLES} pictures. Each subject alternates between sensitive and benign questions, "
    f"and every other subject starts with a benign one. If a record has several such questions, the alphabetically first is "
    f"shown."
)


class Example(NamedTuple):
    """One question about one picture, with the answer of each model.

    Attributes:
        question: one of the answers; its record, picture and query are those of the example.
        answers: answer by model; None for a model that did not answer.
    """

    question: JudgedAnswer
    answers: Mapping[str, JudgedAnswer | None]


class Thumbnail(NamedTuple):
    """A thumbnail as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def select_examples(answers: Sequence[JudgedAnswer], count: int = MAX_EXAMPLES) -> list[Example]:
    """Select examples by `SELECTION_RULE`.

    Args:
        answers: answers of all models, in any order.
        count: maximum number of examples.

    Returns:
        Examples of different records, ordered by split, subject and record.
    """
    models = models_of(answers)
    by_question: dict[tuple[str, str, bool, str], dict[str, JudgedAnswer]] = {}
    for row in answers:
        by_question.setdefault((row.split, row.record_id, row.sensitive, row.prompt), {}).setdefault(row.model, row)
    questions: dict[tuple[str, str], dict[str, list[JudgedAnswer]]] = {}
    for rows in by_question.values():
        row = next(rows[model] for model in models if model in rows)
        questions.setdefault((row.split, row.subject), {}).setdefault(row.record_id, []).append(row)

    examples = []
    for sensitive, candidates in _round_robin(questions)[:count]:
        # fall back to the other kind if the record has no such question
        question = min(candidates, key=lambda row: (row.sensitive is not sensitive, row.prompt))
        rows = by_question[question.split, question.record_id, question.sensitive, question.prompt]
        examples.append(Example(question, {model: rows.get(model) for model in models}))
    return sorted(
        examples, key=lambda e: (_split_order(e.question.split), e.question.subject, _natural(e.question.record_id))
    )


def models_of(answers: Sequence[JudgedAnswer]) -> list[str]:
    """Names of the models in some answers: known models first, in the order of `MODEL_NAMES`, then others by name."""
    models = {row.model for row in answers}
    return [model for model in MODEL_NAMES if model in models] + sorted(models - set(MODEL_NAMES))


def thumbnail(example: Example, images: Path) -> Thumbnail:
    """Make the thumbnail of an example, at most `THUMBNAIL_SIZE` pixels wide and high.

    Raises:
        DataFormatError: the picture is missing, unreadable, or outside `images`.
    """
    place = f"record '{example.question.record_id}'"
    path = resolve_inside(images, example.question.image, place)
    picture = read_image(path, example.question.record_id, near=(2 * THUMBNAIL_SIZE, 2 * THUMBNAIL_SIZE))
    picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{encoded}", *picture.size)


def _round_robin(
    questions: Mapping[tuple[str, str], Mapping[str, list[JudgedAnswer]]],
) -> list[tuple[bool, list[JudgedAnswer]]]:
    """Order records by `SELECTION_RULE`: for each, whether to show a sensitive question, and the questions to choose from."""
    splits: dict[str, list[tuple[str, str]]] = {}
    for split, subject in sorted(questions, key=lambda key: (_split_order(key[0]), key[1])):
        splits.setdefault(split, []).append((split, subject))
    queues = [
        [
            ((start + index) % 2 == 0, questions[group][record])
            for index, record in enumerate(sorted(questions[group], key=_natural))
        ]
        for start, group in enumerate(_interleave(splits.values()))
    ]
    return list(_interleave(queues))


def _interleave(queues: Iterable[Iterable[T]]) -> Iterator[T]:
    """Yield the first item of each queue, then the second of each, and so on."""
    for turn in zip_longest(*queues):
        yield from (item for item in turn if item is not None)


def _split_order(split: str) -> tuple[int, str]:
    known = list(SPLIT_NAMES)
    return (known.index(split) if split in known else len(known), split)


def _natural(text: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort key with numbers compared as numbers, so that record 2 precedes record 10."""
    parts = re.split(r"([0-9]+)", text)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], text
