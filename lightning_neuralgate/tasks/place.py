"""Where something stands in a data file, and the error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lightning_neuralgate.data.records import resolve_inside
from lightning_neuralgate.errors import DataFormatError


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
        lightning_neuralgate.tasks.place.BrokenItemError: pope.json, line 3: not JSON
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
