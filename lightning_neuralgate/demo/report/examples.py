"""Which pictures the page shows, by a rule that does not look at the answers, and their thumbnails."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image, ImageOps

from lightning_neuralgate.data.records import resolve_inside
from lightning_neuralgate.demo.report.formatting import MODEL_NAMES, SPLIT_NAMES
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import JudgedAnswer

T = TypeVar("T")

COUNT = 20
THUMBNAIL = 192
RULE = (
    f"The pictures are chosen by rule, without a look at the answers. Splits and their subjects take turns; at its turn a "
    f"subject shows its next record by id. Each subject shows a sensitive and a benign question alternately, and every "
    f"other subject begins with a benign one; of several questions it is the first in alphabetical order. This goes on "
    f"until there are {COUNT} pictures or no records are left."
)


class Example(NamedTuple):
    """One question about one picture; `answers` maps model to answer, None where there is none."""

    asked: JudgedAnswer
    answers: Mapping[str, JudgedAnswer | None]


class Thumbnail(NamedTuple):
    """A small picture as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def choose(answers: Sequence[JudgedAnswer], count: int = COUNT) -> list[Example]:
    """Choose pictures by `RULE`.

    Args:
        answers: of all models, in any order.
        count: how many pictures at most.

    Returns:
        One example a record, ordered by split, subject and record.
    """
    models = models_of(answers)
    told: dict[tuple[str, str, bool, str], dict[str, JudgedAnswer]] = {}
    for row in answers:
        told.setdefault((row.split, row.record_id, row.sensitive, row.prompt), {}).setdefault(row.model, row)
    questions: dict[tuple[str, str], dict[str, list[JudgedAnswer]]] = {}
    for rows in told.values():
        row = next(rows[model] for model in models if model in rows)
        questions.setdefault((row.split, row.subject), {}).setdefault(row.record_id, []).append(row)

    chosen = []
    for wanted, record in _in_turn(questions)[:count]:
        # a record without a question of the wanted kind shows one of the other
        asked = min(record, key=lambda row: (row.sensitive is not wanted, row.prompt))
        rows = told[asked.split, asked.record_id, asked.sensitive, asked.prompt]
        chosen.append(Example(asked, {model: rows.get(model) for model in models}))
    return sorted(chosen, key=lambda e: (_split_order(e.asked.split), e.asked.subject, _natural(e.asked.record_id)))


def models_of(answers: Sequence[JudgedAnswer]) -> list[str]:
    """The models that answered: the known ones in their order, then others by name."""
    found = {row.model for row in answers}
    return [model for model in MODEL_NAMES if model in found] + sorted(found - set(MODEL_NAMES))


def thumbnail(example: Example, images: Path) -> Thumbnail:
    """The example's picture, at most `THUMBNAIL` pixels wide and high.

    Raises:
        DataFormatError: the picture lies outside `images`, is missing, or is no picture.
    """
    place = f"record '{example.asked.record_id}'"
    path = resolve_inside(images, example.asked.image, place)
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataFormatError(f"{place}: {path} cannot be read as a picture: {error}") from error
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    opaque = Image.new("RGB", picture.size, "white")
    opaque.paste(picture, mask=picture.getchannel("A"))
    buffer = io.BytesIO()
    opaque.save(buffer, format="JPEG", quality=82)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{encoded}", *opaque.size)


def _in_turn(
    questions: Mapping[tuple[str, str], Mapping[str, list[JudgedAnswer]]],
) -> list[tuple[bool, list[JudgedAnswer]]]:
    """Records in the order of their turns: whether a sensitive question is wanted, and the record's questions."""
    splits: dict[str, list[tuple[str, str]]] = {}
    for split, subject in sorted(questions, key=lambda key: (_split_order(key[0]), key[1])):
        splits.setdefault(split, []).append((split, subject))
    queues = [
        [
            ((start + index) % 2 == 0, questions[group][record])
            for index, record in enumerate(sorted(questions[group], key=_natural))
        ]
        for start, group in enumerate(_alternately(splits.values()))
    ]
    return list(_alternately(queues))


def _alternately(queues: Iterable[Iterable[T]]) -> Iterator[T]:
    """The first of each queue, then the second of each, and so on while there are any."""
    for turn in zip_longest(*queues):
        yield from (item for item in turn if item is not None)


def _split_order(split: str) -> tuple[int, str]:
    known = list(SPLIT_NAMES)
    return (known.index(split) if split in known else len(known), split)


def _natural(text: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort key that puts record 2 before record 10."""
    parts = re.split(r"([0-9]+)", text)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], text
