"""A small dataset of four tasks, and an uninterrupted run on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.runs import answer, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def complete(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of an uninterrupted run."""
    return answer(data, tmp_path_factory.mktemp("complete"), use_cache=False).file
