"""Answers that were given before, under all that they depend on."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import cache_folder

_PATIENCE = 60.0


class AnswerCache:
    """Answers in a file that several processes may use at once.

    Args:
        settings: what all answers depend on: the model, its processor, how it generates.
        folder: where the file lies; in the cache folder when left out.

    Raises:
        DataFormatError: the file cannot be used.

    Example:
        >>> import tempfile
        >>> cache = AnswerCache({"model": "a1b2"}, Path(tempfile.mkdtemp()))
        >>> key = cache.key("What is this?", "picture's digest")
        >>> cache.recall([key])
        [None]
        >>> cache.keep({key: "A passport."})
        >>> cache.recall([key])
        ['A passport.']
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path | None = None) -> None:
        self.file = (folder or cache_folder() / "answers") / "answers.sqlite"
        self._settings = json.dumps(settings, sort_keys=True, default=str)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._base = sqlite3.connect(self.file, timeout=_PATIENCE)
            with self._base:
                self._base.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID"
                )
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.Error) -> DataFormatError:
        return DataFormatError(f"the cache {self.file} cannot be used ({error}); delete it, or run with --cache false")

    def key(self, prompt: str, picture: str, more: str = "") -> str:
        """The key of an answer.

        Args:
            prompt: the question.
            picture: the picture's digest.
            more: what else this one answer depends on, such as a seed.
        """
        return hashlib.sha256(json.dumps([self._settings, prompt, picture, more]).encode()).hexdigest()

    def recall(self, keys: Sequence[str]) -> list[str | None]:
        """The answers under some keys; None where there is none."""
        try:
            found = [self._base.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone() for key in keys]
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return [None if row is None else json.loads(row[0]) for row in found]

    def keep(self, answers: Mapping[str, str]) -> None:
        """Keep answers under their keys."""
        try:
            with self._base:
                rows = [(key, json.dumps(answer)) for key, answer in answers.items()]
                self._base.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Close the file."""
        self._base.close()
