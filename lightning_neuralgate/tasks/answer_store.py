"""Answers as JSON lines: appended as they come, read one at a time, and in the end written whole and in order."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.tasks.item import AnsweredItem, BrokenItems
from lightning_neuralgate.tasks.sources import read_json_lines

ANSWERS_NAME = "answers.jsonl"
_FIELDS = {field.name: dict if field.name == "fields" else str for field in fields(AnsweredItem)}


def answer_line(item: AnsweredItem) -> str:
    """An answer as one line of ASCII JSON: a model may say anything, lone surrogates included."""
    return json.dumps(asdict(item), ensure_ascii=True) + "\n"


def parse_answer(content: dict[str, Any], place: object) -> AnsweredItem:
    """An answer out of the JSON object of its line.

    Raises:
        DataFormatError: naming place and field: one that is missing, unknown, or of another type.
    """
    for name, kind in _FIELDS.items():
        if name not in content:
            raise DataFormatError(f"{place}: field '{name}' is missing; an answer has {', '.join(_FIELDS)}")
        if not isinstance(content[name], kind):
            wanted = "an object" if kind is dict else "text"
            raise DataFormatError(f"{place}: field '{name}' has to be {wanted}, found {json.dumps(content[name])[:80]}")
    if unknown := [name for name in content if name not in _FIELDS]:
        raise DataFormatError(f"{place}: there is no field '{unknown[0]}'; an answer has {', '.join(_FIELDS)}")
    return AnsweredItem(**content)


def read_answered(path: Path) -> Iterator[AnsweredItem]:
    """The answers in a file, one at a time.

    Args:
        path: the file, or a folder with `answers.jsonl`.

    Raises:
        DataFormatError: naming file, line and field: see `parse_answer` and `sources.read_json_lines`; an item that is
            answered twice.
    """
    file = path / ANSWERS_NAME if path.is_dir() else path
    seen: set[int] = set()
    for place, content in read_json_lines(file, BrokenItems()):
        answer = parse_answer(content, place)
        key = hash(answer.key)
        if key in seen:
            raise DataFormatError(f"{place}: item '{answer.item_id}' of '{answer.task}' is answered twice")
        seen.add(key)
        yield answer


class IndexedAnswers:
    """The answers in a file by their keys; only the keys are held in memory. A context manager.

    Args:
        path: the file, or a folder with `answers.jsonl`.
    """

    def __init__(self, path: Path) -> None:
        self._file = path / ANSWERS_NAME if path.is_dir() else path
        self._lines = self._file.open("rb")
        self._places: dict[tuple[str, str], int] = {}
        offset = 0
        for answer_bytes in self._lines:
            if answer_bytes.strip():
                content = json.loads(answer_bytes)
                self._places[content["task"], content["item_id"]] = offset
            offset += len(answer_bytes)

    def get(self, key: tuple[str, str]) -> AnsweredItem | None:
        """The answer to an item; None where there is none."""
        if key not in self._places:
            return None
        self._lines.seek(self._places[key])
        return parse_answer(json.loads(self._lines.readline()), str(self._file))

    def __enter__(self) -> IndexedAnswers:
        return self

    def __exit__(self, *problem: object) -> None:
        self._lines.close()


class AnswerLog:
    """A file that answers are appended to, so that a killed process loses none that it was done with.

    Args:
        file: the file; made with its folder. What a killed process left of a last line is cut off.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("ab+")
        self._file.truncate(_end_of_last_line(self._file))

    def append(self, lines: Iterable[str]) -> None:
        """Append lines, and see them on the disk."""
        self._file.write("".join(lines).encode("ascii"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _end_of_last_line(file: Any) -> int:
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return int(start + found + 1)
        end = start
    return 0


def logged_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Offset and content of each whole line of a log.

    Raises:
        DataFormatError: a line that no run has written.
    """
    with file.open("rb") as lines:
        offset = 0
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):
                try:
                    yield offset, json.loads(line)
                except ValueError as error:
                    raise DataFormatError(f"{file}, line {number}: no answer ({error}); delete the line") from error
            offset += len(line)


def write_sorted(target: Path, logs: Iterable[Path]) -> dict[str, int]:
    """Write the answers of some logs into one file, sorted by task and item, each once. Returns how many each task has.

    Only their names are held in memory.
    """
    files = list(logs)
    places: dict[tuple[str, str], tuple[int, int]] = {}
    for number, file in enumerate(files):
        for offset, content in logged_lines(file):
            if "answer" in content:
                places.setdefault((content["task"], content["item_id"]), (number, offset))
    streams = [file.open("rb") for file in files]
    try:
        with atomic_write(target) as draft, draft.open("wb") as lines:
            for _, (number, offset) in sorted(places.items()):
                streams[number].seek(offset)
                lines.write(streams[number].readline())
    finally:
        for stream in streams:
            stream.close()
    return dict(Counter(task for task, _ in places))
