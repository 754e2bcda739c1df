"""What happens to broken items: the run stops at the first, or they are skipped and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

from lightning_neuralgate.errors import DataFormatError

OnBroken = Literal["stop", "skip"]
Made = TypeVar("Made")
_SHOWN = 5


class BrokenItems:
    """Stops at what is broken, or counts it.

    Args:
        on_broken: `stop` raises the error; `skip` keeps its message and goes on.

    Attributes:
        count: how many were skipped.
        messages: the first few of their messages.

    Example:
        >>> broken = BrokenItems("skip")
        >>> def number(text):
        ...     if not text.isdigit():
        ...         raise DataFormatError(f"'{text}' is no number")
        ...     return int(text)
        >>> list(broken.passing(["1", "x", "3"], number))
        [1, 3]
        >>> broken.count, broken.messages
        (1, ["'x' is no number"])
    """

    def __init__(self, on_broken: OnBroken = "stop") -> None:
        if on_broken not in ("stop", "skip"):
            raise ValueError(f"on_broken must be 'stop' or 'skip', got {on_broken!r}")
        self.on_broken = on_broken
        self.count = 0
        self.messages: list[str] = []

    def add(self, error: DataFormatError) -> None:
        """Raise an error, or count it."""
        if self.on_broken == "stop":
            raise error
        self.count += 1
        if len(self.messages) < _SHOWN:
            self.messages.append(str(error))

    def passing(self, rows: Iterable[object], make: Callable[..., Made]) -> Iterator[Made]:
        """What `make` makes of each row, without those that raise a DataFormatError."""
        for row in rows:
            try:
                made = make(row)
            except DataFormatError as error:
                self.add(error)
            else:
                yield made
