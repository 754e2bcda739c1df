"""A small dataset of four tasks, an uninterrupted run on it, and the drawn sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_neuralgate.tasks.mini import render_mini
from tests.tasks.runs import answer, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def complete(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of an uninterrupted run."""
    return answer(data, tmp_path_factory.mktemp("complete"), use_cache=False).file


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn sets of seed 0, in a folder where `eval --mini` finds them."""
    folder = tmp_path_factory.mktemp("out") / "mini-0"
    render_mini(folder)
    return folder
