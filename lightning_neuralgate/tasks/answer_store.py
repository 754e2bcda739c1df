"""Files of answers: a log per process during a run, merged into one sorted file, which is read one answer at a time."""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_neuralgate.errors import DataFormatError, ResumeError
from lightning_neuralgate.evaluation.answers import AnsweredItem, parse_answer
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.parsing import ParseError, parse_json, parse_json_line
from lightning_neuralgate.tasks.item import BrokenItems, Skipped
from lightning_neuralgate.tasks.sources import read_json_lines

ANSWERS_NAME = "answers.jsonl"


def read_answered(path: Path) -> Iterator[AnsweredItem]:
    """Yield the answers in a file.

    Args:
        path: the file, or a folder with `answers.jsonl`.

    Raises:
        DataFormatError: naming file, line and field: see `parse_answer` and `sources.read_json_lines`; an item that is
            answered twice.
    """
    seen: set[int] = set()
    for place, content in read_json_lines(_answer_file(path), BrokenItems(), own=True):
        answer = parse_answer(content, place, AnsweredItem)
        key = hash(answer.key)
        if key in seen:
            raise DataFormatError(f"{place}: item '{answer.item_id}' of '{answer.task}' is answered twice")
        seen.add(key)
        yield answer


def _answer_file(path: Path) -> Path:
    return path / ANSWERS_NAME if path.is_dir() else path


class IndexedAnswers:
    """Random access to the answers in a file, with only their keys in memory. A context manager.

    Args:
        path: the file, or a folder with `answers.jsonl`.
    """

    def __init__(self, path: Path) -> None:
        self._file = _answer_file(path)
        self._lines = self._file.open("rb")
        self._offsets: dict[tuple[str, str], int] = {}
        offset = 0
        for line in self._lines:
            if line.strip():
                answer = self._parse(line)
                self._offsets[answer.key] = offset
            offset += len(line)

    def get(self, key: tuple[str, str]) -> AnsweredItem | None:
        """Return the answer to an item; None if there is none."""
        if key not in self._offsets:
            return None
        self._lines.seek(self._offsets[key])
        return self._parse(self._lines.readline())

    def _parse(self, line: bytes) -> AnsweredItem:
        return parse_answer(
            parse_json_line(line.removeprefix(BOM_UTF8), self._file, own=True), self._file, AnsweredItem
        )

    def __enter__(self) -> IndexedAnswers:
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()


class AnswerLog:
    """A file that one process appends its answers to, so that a killed process loses no completed batch.

    Args:
        file: the file; created with its folder. An incomplete last line, left by a killed process, is cut off.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._path = file
        self._file = file.open("ab+")
        self._file.truncate(_end_of_last_line(self._file))

    def append(self, lines: Iterable[str]) -> None:
        """Append lines and flush them to disk.

        Raises:
            ResumeError: see `check`.
        """
        self.check()
        self._file.write("".join(lines).encode("ascii"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def check(self) -> None:
        """Check that the file is still in its place.

        Raises:
            ResumeError: it has been removed or replaced.
        """
        try:
            in_place = os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            in_place = False
        if not in_place:
            raise ResumeError(
                f"{self._path} was removed or replaced while this run wrote to it, perhaps by another run in the same "
                "folder; start this run again"
            )

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
    """Yield offset and content of each complete line of a log.

    Raises:
        DataFormatError: naming a line that no run has written.
    """
    with file.open("rb") as lines:
        offset = 0
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):
                try:
                    content = parse_json(line, own=True)
                    if not isinstance(content["task"], str) or not isinstance(content["item_id"], str):
                        raise TypeError("'task' and 'item_id' have to be text")
                    if "broken" in content:
                        Skipped(**content["broken"])
                except (ParseError, KeyError, TypeError) as error:
                    raise DataFormatError(f"{file}, line {number}: no answer ({error!r}); delete the line") from error
                yield offset, content
            offset += len(line)


def write_sorted(target: Path, logs: Iterable[Path]) -> dict[str, int]:
    """Merge the answers of some logs into one file, sorted by task and item, each once.

    Only the keys are held in memory.

    Returns:
        Task -> number of answers.
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
