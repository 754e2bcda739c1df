"""SQLite cache of model answers and judge replies, shared between runs."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
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
            self._database = sqlite3.connect(self.file, timeout=_LOCK_TIMEOUT, check_same_thread=False)
            with self._database:
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID"
                )

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
        """Return the cached answer of each key, or None where there is none."""
        query = "SELECT answer FROM answers WHERE key = ?"
        with self._explained_errors(), self._lock:
            rows = [self._database.execute(query, (key,)).fetchone() for key in keys]
        return [None if row is None else json.loads(row[0]) for row in rows]

    def keep(self, answers: Mapping[str, str]) -> None:
        """Store answers under their keys."""
        rows = [(key, json.dumps(answer)) for key, answer in answers.items()]
        with self._explained_errors(), self._lock, self._database:
            self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._database.close()
