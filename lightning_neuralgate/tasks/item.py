"""One question of a benchmark, and what a model said to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from lightning_neuralgate.data.records import resolve_inside
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import atomic_write


class Place(NamedTuple):
    """A file and a record in it.

    Attributes:
        file: the file, or the name of a data set.
        record: the line, row or question; empty for the whole file.

    Example:
        >>> str(Place("pope.json", "line 3"))
        'pope.json, line 3'
        >>> raise Place("pope.json", "line 3").broken("not JSON")
        Traceback (most recent call last):
        ...
        lightning_neuralgate.tasks.item.BrokenItemError: pope.json, line 3: not JSON
    """

    file: str
    record: str = ""

    def __str__(self) -> str:
        return f"{self.file}, {self.record}" if self.record else self.file

    def broken(self, reason: str) -> BrokenItemError:
        """The error that says what is wrong here."""
        return BrokenItemError(f"{self}: {reason}", self, reason)

    def picture(self, folder: Path, name: str) -> Path:
        """The file of a picture that is named here.

        Raises:
            BrokenItemError: it is not there, or leaves the folder.
        """
        try:
            return resolve_inside(folder, name, str(self))
        except (DataFormatError, ValueError, OSError) as error:  # a name with a null character, or one that is too long
            raise self.broken(str(error).removeprefix(f"{self}: ")) from error


class BrokenItemError(DataFormatError):
    """A record of a data file is not what it has to be.

    Attributes:
        place: where it stands.
        reason: what is wrong, without the place.
    """

    def __init__(self, message: str, place: Place | None = None, reason: str = "") -> None:
        # a DataLoader raises the error of its worker again from the message alone
        super().__init__(message)
        self.place, self.reason = place or Place(""), reason or message


@dataclass(frozen=True)
class TaskItem:
    """One question about one picture.

    Attributes:
        task: the benchmark, such as "pope".
        item_id: the question's name, unique within its task.
        picture: the picture, as a file or as the bytes of one.
        image: what the picture is called in the task's files.
        prompt: what the model is asked, to the letter.
        truth: the right answer as the task writes it ("yes", "B", a secret); empty where there is none.
        fields: what else the scores and exports of the task need, as JSON can hold it.
        group: questions of one group are scored together, such as MME's two about one image; the item's own name where
            it stands alone.
        place: where it was read.
    """

    task: str
    item_id: str
    picture: Path | bytes
    image: str
    prompt: str
    truth: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    place: Place = field(default=Place(""), compare=False)

    def answered(self, answer: str) -> AnsweredItem:
        """The item with what a model said, without the picture."""
        return AnsweredItem(self.task, self.item_id, self.image, self.prompt, self.truth, dict(self.fields), answer)


@dataclass(frozen=True)
class AnsweredItem:
    """A question with its answer: a line of `answers.jsonl`. Everything that scores and exports need stands in it.

    Attributes:
        task, item_id, image, prompt, truth, fields: see `TaskItem`.
        answer: what the model said, without the prompt.
    """

    task: str
    item_id: str
    image: str
    prompt: str
    truth: str
    fields: dict[str, Any]
    answer: str

    @property
    def key(self) -> tuple[str, str]:
        """What sorts answers and tells them apart."""
        return self.task, self.item_id


OnBroken = Literal["stop", "skip"]
Made = TypeVar("Made")
BROKEN_NAME = "broken.jsonl"
_SHOWN = 5


class Skipped(NamedTuple):
    """A broken item that was skipped: a line of `broken.jsonl`.

    Attributes:
        task: the benchmark.
        file: where it stands; empty where that is not known.
        record: the line, row or question of the file.
        reason: what is wrong.
        item_id: the item's name, where it got so far.
    """

    task: str
    file: str
    record: str
    reason: str
    item_id: str = ""

    def __str__(self) -> str:
        return f"{Place(self.file, self.record)}: {self.reason}" if self.file else self.reason


class BrokenItems:
    """Stops at what is broken, or keeps it.

    Args:
        on_broken: `stop` raises the error; `skip` keeps it and goes on.
        task: the benchmark that is read.

    Attributes:
        skipped: what was skipped.

    Example:
        >>> broken = BrokenItems("skip", "counting")
        >>> def number(text):
        ...     if not text.isdigit():
        ...         raise Place("numbers.txt", "line 2").broken(f"'{text}' is no number")
        ...     return int(text)
        >>> list(broken.passing(["1", "x", "3"], number))
        [1, 3]
        >>> broken.count, broken.messages
        (1, ["numbers.txt, line 2: 'x' is no number"])
    """

    def __init__(self, on_broken: OnBroken = "stop", task: str = "") -> None:
        if on_broken not in ("stop", "skip"):
            raise ValueError(f"on_broken must be 'stop' or 'skip', got {on_broken!r}")
        self.on_broken, self.task = on_broken, task
        self.skipped: list[Skipped] = []

    @property
    def count(self) -> int:
        """How many were skipped."""
        return len(self.skipped)

    @property
    def messages(self) -> list[str]:
        """What is wrong with the first few."""
        return [str(one) for one in self.skipped[:_SHOWN]]

    def add(self, error: DataFormatError) -> None:
        """Raise an error, or keep it."""
        if self.on_broken == "stop":
            raise error
        self.skipped.append(skipped_for(error, self.task))

    def passing(self, rows: Iterable[object], make: Callable[..., Made]) -> Iterator[Made]:
        """What `make` makes of each row, without those that raise a DataFormatError."""
        for row in rows:
            try:
                made = make(row)
            except DataFormatError as error:
                self.add(error)
            else:
                yield made


def skipped_for(error: DataFormatError, task: str, item_id: str = "") -> Skipped:
    """An error as the item that is skipped for it."""
    if isinstance(error, BrokenItemError):
        return Skipped(task, *error.place, error.reason, item_id)
    return Skipped(task, "", "", str(error), item_id)


def write_skipped(folder: Path, skipped: Iterable[Skipped]) -> None:
    """Write `broken.jsonl` into a folder, whole; without anything to say there is no such file."""
    file, items = folder / BROKEN_NAME, list(skipped)
    if not items:
        file.unlink(missing_ok=True)
        return
    with atomic_write(file) as draft, draft.open("w", encoding="ascii") as lines:
        lines.writelines(json.dumps(one._asdict()) + "\n" for one in items)


def skipped_of_each(folder: Path) -> dict[str, int]:
    """Task -> number of its items that were skipped, by the `broken.jsonl` of a folder.

    Raises:
        DataFormatError: naming the line that is none of its.
    """
    file = folder / BROKEN_NAME
    if not file.is_file():
        return {}
    counts: Counter[str] = Counter()
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                counts[Skipped(**json.loads(line)).task] += 1
            except (ValueError, TypeError) as error:
                raise DataFormatError(f"{file}, line {number}: no broken item ({error})") from error
    return dict(counts)
