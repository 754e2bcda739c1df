"""SQLite cache of model answers and judge replies, shared between runs."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import cache_folder

_LOCK_TIMEOUT = 60.0


class AnswerCache:
    """Answers in one SQLite file, safe for several processes and threads at once.

    Args:
        settings: everything all answers depend on, such as the model, its processor and the generation settings.
        folder: folder of the file; `answers` in the cache folder by default.

    Raises:
        DataFormatError: the file is not a usable database; from every method.

    Example:
        >>> import tempfile
        >>> cache = AnswerCache({"model": "a1b2"}, Path(tempfile.mkdtemp()))
        >>> key = cache.key("What is this?", "digest of the picture")
        >>> cache.recall([key])
        [None]
        >>> cache.keep({key: "A passport."})
        >>> cache.recall([key])
        ['A passport.']
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path | None = None) -> None:
        self.file = (folder or cache_folder() / "answers") / "answers.sqlite"
        self._settings = json.dumps(settings, sort_keys=True, default=str)
        self._lock = threading.Lock()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._explained_errors():
            self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            self._move_damaged_away(error)
            return self._connect()

    def _move_damaged_away(self, error: sqlite3.DatabaseError) -> None:
        if type(error) is not sqlite3.DatabaseError:  # a subclass: a full disk, a locked file
            raise error
        damaged = self.file.with_suffix(".damaged")
        warnings.warn(
            f"{self.file} is damaged ({error}); it is now {damaged.name}, and a new one is made", stacklevel=4
        )
        Path(f"{self.file}-journal").unlink(missing_ok=True)  # would be applied to the new file
        os.replace(self.file, damaged)

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.file, timeout=_LOCK_TIMEOUT, check_same_thread=False)
        try:
            with database:
                database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID")
                database.execute("SELECT answer FROM answers WHERE key = ''")
        except sqlite3.Error:
            database.close()
            raise
        return database

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DataFormatError(
                f"the cache {self.file} cannot be used ({error}); delete it, or run with --cache false "
                "(for a judge's replies --judge.cache false)"
            ) from error

    def key(self, prompt: str, picture: str = "", more: str = "") -> str:
        """Return the key of one answer.

        Args:
            prompt: the prompt.
            picture: digest of the picture; empty for a prompt without one.
            more: anything else this answer depends on, such as a seed.
        """
        return hashlib.sha256(json.dumps([self._settings, prompt, picture, more]).encode()).hexdigest()

    def recall(self, keys: Sequence[str]) -> list[str | None]:
        """Return the cached answer of each key, or None where there is none, or not as it was written."""
        with self._explained_errors(), self._lock:
            return [self._stored(key) for key in keys]

    def _stored(self, key: str) -> str | None:
        try:
            row = self._database.execute("SELECT CAST(answer AS BLOB) FROM answers WHERE key = ?", (key,)).fetchone()
            content = None if row is None else json.loads(row[0])
        except (ValueError, TypeError, RecursionError):
            return None
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise
            return None  # a damaged page
        if isinstance(content, list) and len(content) == 2 and content[1] == _checksum(key, content[0]):
            return str(content[0])
        return content if isinstance(content, str) else None  # a row of a release without checksums

    def keep(self, answers: Mapping[str, str]) -> None:
        """Store answers under their keys."""
        rows = [(key, json.dumps([answer, _checksum(key, answer)])) for key, answer in answers.items()]
        with self._explained_errors(), self._lock:
            try:
                self._insert(rows)
            except sqlite3.DatabaseError as error:
                self._move_damaged_away(error)
                self._database.close()
                self._database = self._connect()
                self._insert(rows)

    def _insert(self, rows: Sequence[tuple[str, str]]) -> None:
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _checksum(key: str, answer: object) -> str:
    return hashlib.sha256(json.dumps([key, answer]).encode()).hexdigest()[:16]
