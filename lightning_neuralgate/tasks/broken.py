"""What happens to broken items: the run stops at the first, or they are skipped, counted and kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import written_whole
from lightning_neuralgate.tasks.place import BrokenItemError, Place

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
    with written_whole(file) as draft, draft.open("w", encoding="ascii") as lines:
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
