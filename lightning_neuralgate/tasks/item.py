"""Questions of benchmarks, where they were read, and the broken ones that stop a run or are skipped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from lightning_neuralgate.data.records import resolve_inside
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.parsing import json_lines

Row = TypeVar("Row")
Parsed = TypeVar("Parsed")
OnBroken = Literal["stop", "skip"]
BROKEN_NAME = "broken.jsonl"
_MAX_MESSAGES = 5


class Place(NamedTuple):
    """A file and a record in it.

    Attributes:
        file: the file, or the name of a dataset.
        record: the line, row or question; empty for the file itself.

    Example:
        >>> str(Place("pope.json", "line 3"))
        'pope.json, line 3'
        >>> raise Place("pope.json", "line 3").error("not JSON")
        Traceback (most recent call last):
        ...
        lightning_neuralgate.tasks.item.BrokenItemError: pope.json, line 3: not JSON
    """

    file: str
    record: str = ""

    def __str__(self) -> str:
        return f"{self.file}, {self.record}" if self.record else self.file

    def error(self, reason: str) -> BrokenItemError:
        """Return the error for a broken record at this place."""
        return BrokenItemError(f"{self}: {reason}", self, reason)

    def picture(self, folder: Path, name: str) -> Path:
        """Return the file of a picture that is named at this place.

        Raises:
            BrokenItemError: it does not exist, or leaves the folder.
        """
        try:
            return resolve_inside(folder, name, str(self))
        except (DataFormatError, ValueError, OSError) as error:  # names with a null character, or too long
            raise self.error(str(error).removeprefix(f"{self}: ")) from error


class BrokenItemError(DataFormatError):
    """A record of a data file is broken.

    Attributes:
        place: file and record.
        reason: what is wrong, without the place.
    """

    def __init__(self, message: str, place: Place | None = None, reason: str = "") -> None:
        # a DataLoader re-raises the error of its worker from the message alone
        super().__init__(message)
        self.place, self.reason = place or Place(""), reason or message


@dataclass(frozen=True)
class TaskItem:
    """A question, usually about a picture.

    Attributes:
        task: the benchmark, such as "pope".
        item_id: the question's name, unique within its task.
        picture: the picture, as a file or as bytes; None for a question without one.
        image: the picture's name in the task's files; empty without one.
        prompt: the question, verbatim.
        truth: the right answer as the task writes it ("yes", "B", a secret); empty if there is none.
        fields: further values that scores and exports of the task need, as JSON can hold them.
        earlier: messages of the chat before the question, as (role, text).
        opening: start of the answer, which the model continues; `answered` adds it to `fields`.
        group: questions of one group are scored together, such as MME's two about one image; else the item's own name.
        place: where it was read.
    """

    task: str
    item_id: str
    picture: Path | bytes | None
    image: str
    prompt: str
    truth: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    earlier: tuple[tuple[str, str], ...] = ()
    opening: str = ""
    group: str = ""
    place: Place = field(default=Place(""), compare=False)

    @property
    def request(self) -> str:
        """All text that the model is given: the prompt alone, or JSON of earlier messages, prompt and opening."""
        return json.dumps([self.earlier, self.prompt, self.opening]) if self.earlier or self.opening else self.prompt

    def answered(self, answer: str, **more: Any) -> AnsweredItem:
        """Return the item with an answer, without the picture; `more` is added to `fields`."""
        fields = {**self.fields, **({"opening": self.opening} if self.opening else {}), **more}
        return AnsweredItem(self.task, self.item_id, self.image, self.prompt, self.truth, fields, answer)


class Skipped(NamedTuple):
    """A broken item that was skipped: a line of `broken.jsonl`.

    Attributes:
        task: the benchmark.
        file: the file; empty if unknown.
        record: the line, row or question of the file.
        reason: what is wrong.
        item_id: the item's name, if it was read that far.
    """

    task: str
    file: str
    record: str
    reason: str
    item_id: str = ""

    @classmethod
    def from_error(cls, error: DataFormatError, task: str, item_id: str = "") -> Skipped:
        """Return the item that is skipped because of an error."""
        if isinstance(error, BrokenItemError):
            return cls(task, *error.place, error.reason, item_id)
        return cls(task, "", "", str(error), item_id)

    def __str__(self) -> str:
        return f"{Place(self.file, self.record)}: {self.reason}" if self.file else self.reason


class BrokenItems:
    """Raises errors of broken items, or collects them.

    Args:
        on_broken: `stop` raises the error; `skip` collects it.
        task: the benchmark that is read.

    Attributes:
        skipped: the collected items.

    Example:
        >>> broken = BrokenItems("skip", "counting")
        >>> def number(text):
        ...     if not text.isdigit():
        ...         raise Place("numbers.txt", "line 2").error(f"'{text}' is no number")
        ...     return int(text)
        >>> list(broken.parse_all(["1", "x", "3"], number))
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
        """Number of skipped items."""
        return len(self.skipped)

    @property
    def messages(self) -> list[str]:
        """The errors of the first few."""
        return [str(item) for item in self.skipped[:_MAX_MESSAGES]]

    def add(self, error: DataFormatError) -> None:
        """Raise an error, or collect it."""
        if self.on_broken == "stop":
            raise error
        self.skipped.append(Skipped.from_error(error, self.task))

    def parse_all(self, rows: Iterable[Row], parse: Callable[[Row], Parsed]) -> Iterator[Parsed]:
        """Yield `parse(row)` of each row, passing each DataFormatError to `add`."""
        for row in rows:
            try:
                parsed = parse(row)
            except DataFormatError as error:
                self.add(error)
            else:
                yield parsed


def write_skipped(folder: Path, skipped: Iterable[Skipped]) -> None:
    """Write `broken.jsonl` into a folder, or delete it if nothing was skipped."""
    file, items = folder / BROKEN_NAME, list(skipped)
    if not items:
        file.unlink(missing_ok=True)
        return
    with atomic_write(file) as draft, draft.open("w", encoding="ascii") as lines:
        lines.writelines(json.dumps(item._asdict()) + "\n" for item in items)


def skipped_counts(folder: Path) -> dict[str, int]:
    """Return the number of skipped items of each task, from the `broken.jsonl` of a folder.

    Raises:
        DataFormatError: naming a line that is invalid.
    """
    file = folder / BROKEN_NAME
    if not file.is_file():
        return {}
    counts: Counter[str] = Counter()
    for place, content in json_lines(file, own=True):
        try:
            counts[Skipped(**content).task] += 1
        except TypeError as error:
            raise DataFormatError(f"{place}: no broken item ({error})") from error
    return dict(counts)
