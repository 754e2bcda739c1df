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


def test_a_damaged_file_is_moved_away_and_made_anew(tmp_path: Path) -> None:
    text = "not a database, but long enough to be read as the header of one" * 20
    (tmp_path / "answers.sqlite").write_text(text)
    with pytest.warns(UserWarning, match=r"answers\.sqlite is damaged .* it is now answers\.damaged"):
        cache = AnswerCache({}, tmp_path)
    cache.keep({"key": "answer"})
    assert cache.recall(["key"]) == ["answer"]
    assert (tmp_path / "answers.damaged").read_text() == text


@pytest.mark.parametrize(
    "damage",
    ['{"a": 1}', "7", '["A passpart.", "CHECKSUM"]', '["A passport.', "\xff", "[" * 100_000, '["A passport."]', None],
)
def test_a_damaged_row_counts_as_not_there(tmp_path: Path, damage: str | None) -> None:
    cache = AnswerCache({}, tmp_path)
    cache.keep({"key": "A passport."})
    with sqlite3.connect(cache.file) as database:
        (stored,) = database.execute("SELECT answer FROM answers").fetchone()
        replaced = None if damage is None else damage.replace("CHECKSUM", json.loads(stored)[1])
        database.execute("UPDATE answers SET answer = ?", (replaced,))
    database.close()
    assert cache.recall(["key"]) == [None]
    cache.keep({"key": "A passport."})
    assert cache.recall(["key"]) == ["A passport."]


def test_a_full_disk_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = AnswerCache({}, tmp_path)

    def full(rows: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(cache, "_insert", full)
    with pytest.raises(DataFormatError, match=r"answers\.sqlite cannot be used .*disk is full.*--judge\.cache false"):
        cache.keep({"key": "A passport."})
    assert cache.file.exists()
