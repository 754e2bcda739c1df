"""An answered query as a record: what a model was asked about a picture, and what it said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PureWindowsPath
from typing import Any

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import atomic_write


@dataclass(frozen=True)
class Answer:
    """One answer of one model to one query.

    Attributes:
        model: which model answered: "unedited", "gated" or "ungated".
        split: which split the record belongs to: "test", "unseen_attributes" or "unseen_subjects".
        record_id: the record's name, unique within its split.
        subject: the words that name the private thing.
        image: path of the picture, relative to the folder that holds all pictures.
        sensitive: whether the query is to be refused.
        attribute: what the query asks for.
        query: the query.
        answer: what the model said.
        refused: whether the answer counts as a refusal, by a keyword list.
        truth: the true value of the attribute, where known.
        leaked: whether the answer to a sensitive query holds the true value, where that is known.
        leaked_share: how much of it the answer holds, in [0, 1].
        correct: whether the answer to a benign query says the true value, where that is known.
        judged: whether the answer refuses, by a second judge that is no keyword list; None where none was asked.

    Raises:
        DataFormatError: `image` is empty, absolute, or leads out of its folder; a leak is told of a benign query, or a
            right answer of a sensitive one; only one of `leaked` and `leaked_share` is told, or the share is none.

    Example:
        >>> common = {"model": "gated", "split": "test", "record_id": "passport-0", "subject": "passport"}
        >>> row = Answer(**common, image="images/0.png", sensitive=True, attribute="number",
        ...              query="What is the number?", answer="I cannot say.", refused=True, truth="X123")
        >>> row.refused
        True
        >>> Answer(**common, image="../secret.png", sensitive=True, attribute="", query="", answer="",
        ...        refused=False, truth=None)
        Traceback (most recent call last):
        ...
        lightning_neuralgate.errors.DataFormatError: record 'passport-0': image path '../secret.png' ...
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
    leaked: bool | None = None
    leaked_share: float | None = None
    correct: bool | None = None
    judged: bool | None = None

    def __post_init__(self) -> None:
        # Windows paths know both separators and drives, so that a file is judged alike wherever it is read
        path = PureWindowsPath(self.image)
        if not path.parts or path.anchor or ".." in path.parts:
            raise DataFormatError(
                f"record '{self.record_id}': image path '{self.image}' has to be relative and stay in the image folder"
            )
        if self.sensitive and self.correct is not None:
            raise DataFormatError(f"record '{self.record_id}': 'correct' is for benign queries, this one is sensitive")
        if not self.sensitive and (self.leaked, self.leaked_share) != (None, None):
            raise DataFormatError(f"record '{self.record_id}': 'leaked' is for sensitive queries, this one is benign")
        if (self.leaked is None) != (self.leaked_share is None):
            raise DataFormatError(f"record '{self.record_id}': 'leaked' and 'leaked_share' are both known or both null")
        if self.leaked_share is not None and not 0 <= self.leaked_share <= 1:
            raise DataFormatError(
                f"record '{self.record_id}': 'leaked_share' has to be from 0 to 1, found {self.leaked_share}"
            )


_FIELDS = tuple(field.name for field in fields(Answer))
# files of older versions lack them
_OPTIONAL = {field.name for field in fields(Answer) if field.default is None}
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("sensitive", "refused"), (bool,)),
    **dict.fromkeys(("leaked", "correct", "judged"), (bool, type(None))),
    "truth": (str, type(None)),
    "leaked_share": (float, int, type(None)),
}


def write_answers(path: Path, rows: Iterable[Answer]) -> None:
    """Write answers as JSON lines, one answer a line; the file appears whole or not at all."""
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as lines:
        for row in rows:
            # ASCII, because a model may say anything: lone surrogates, or characters that turn a terminal's text round
            lines.write(json.dumps(asdict(row), ensure_ascii=True) + "\n")


def read_answers(path: Path) -> list[Answer]:
    """Read what `write_answers` wrote.

    Raises:
        DataFormatError: naming the file and, for a bad answer, its line and field.
    """
    return [_answer(line, f"{path}, line {number}") for number, line in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        # not splitlines(), which also breaks at characters that JSON lets stand in a string
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _answer(line: str, place: str) -> Answer:
    try:
        content: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataFormatError(f"{place}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataFormatError(f"{place}: expected an object with the fields {', '.join(_FIELDS)}")
    for name in _FIELDS:
        if name in _OPTIONAL and name not in content:
            continue
        if name not in content:
            raise DataFormatError(f"{place}: field '{name}' is missing")
        _check_type(name, content[name], place)
    for name in content:
        if name not in _FIELDS:
            raise DataFormatError(f"{place}: there is no field '{name}'; an answer has {', '.join(_FIELDS)}")
    try:
        return Answer(**content)
    except DataFormatError as error:
        raise DataFormatError(f"{place}: {error}") from error


def _check_type(name: str, value: Any, place: str) -> None:
    expected = _TYPES.get(name, (str,))
    # JSON's true is a Python int
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        words = {bool: "true or false", str: "text", float: "a number", type(None): "null"}
        wanted = " or ".join(words[kind] for kind in expected if kind in words)
        raise DataFormatError(f"{place}: field '{name}' has to be {wanted}, found {json.dumps(value)[:80]}")
