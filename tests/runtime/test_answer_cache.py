from __future__ import annotations

import hashlib
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.answer_cache import AnswerCache


def test_keys_depend_on_settings_prompt_picture_and_more(tmp_path: Path) -> None:
    cache = AnswerCache({"model": "a"}, tmp_path)
    keys = [cache.key("p"), cache.key("q"), cache.key("p", "picture"), cache.key("p", "picture", "seed")]
    keys.append(AnswerCache({"model": "b"}, tmp_path).key("p"))
    assert len(set(keys)) == len(keys)
    assert AnswerCache({"model": "a"}, tmp_path).key("p") == keys[0]


def test_file_and_keys_of_earlier_releases_stay_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEURALGATE_CACHE", str(tmp_path))
    settings = {"seed": 0, "model": "a1b2"}
    content = json.dumps([json.dumps({"model": "a1b2", "seed": 0}), "What?", "picture", "7"])
    key = hashlib.sha256(content.encode()).hexdigest()
    assert AnswerCache(settings).key("What?", "picture", "7") == key
    with sqlite3.connect(tmp_path / "answers" / "answers.sqlite") as database:
        database.execute("INSERT INTO answers VALUES (?, ?)", (key, '"A passport."'))
    database.close()
    assert AnswerCache(settings).recall([key]) == ["A passport."]


def test_answers_are_shared_between_caches_and_threads(tmp_path: Path) -> None:
    caches = [AnswerCache({}, tmp_path) for _ in range(2)]
    answers = {caches[0].key(str(number)): f"\ud800 {number}" for number in range(60)}
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda row: caches[row[0] % 2].keep({row[1]: answers[row[1]]}), enumerate(answers)))
        found = list(pool.map(lambda key: caches[1].recall([key])[0], answers))
    assert found == list(answers.values())


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_text("not a database, but long enough to be read as the header of one" * 20)
    with pytest.raises(DataFormatError, match=r"answers\.sqlite cannot be used .* --judge\.cache false"):
        AnswerCache({}, tmp_path)
