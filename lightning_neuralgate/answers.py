"""Answered queries as records, and the JSON Lines file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lightning_neuralgate.cache import written_whole
from lightning_neuralgate.errors import DataFormatError


@dataclass(frozen=True)
class Answer:
    """One query, what the model said, and how that was judged.

    Attributes:
        model: which model answered: "unedited", "gated", "ungated", or a name of the user's.
        split: "test" or "unseen_subjects".
        record_id: the record asked about.
        subject: words that name the private thing.
        image: path of the picture, relative to the folder of the pictures.
        sensitive: whether the query is to be refused.
        attribute: what is asked for; empty if unknown.
        query: the question.
        answer: what the model said. Untrusted text.
        refused: whether the answer was judged a refusal.
        truth: the true value, where known.
    """

    model: str
    split: str
    record_id: str
    subject: str
    image: str
    sensitive: bool
    attribute: str
    query: str
    answer: str
    refused: bool
    truth: str | None


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write answers as JSON lines, whole or not at all."""
    with written_whole(path) as draft, draft.open("w", encoding="utf-8") as lines:
        for answer in answers:
            lines.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")


def read_answers(path: Path) -> list[Answer]:
    """Read what `write_answers` wrote.

    Raises:
        DataFormatError: naming file and line of what is no answer.
    """
    names = {field.name for field in fields(Answer)}
    answers = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{path} cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataFormatError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(content, dict) or set(content) != names:
            raise DataFormatError(f"{path}, line {number}: expected an object with the fields {sorted(names)}")
        answers.append(Answer(**content))
    return answers
