"""Shared fixtures: each test gets an empty cache folder and runs with one thread."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from lightning_neuralgate.data.records import RecordSplits
from tests.helpers.task_files import json_lines, picture
from tests.helpers.tiny_llava import save_tiny_llava, tiny_splits

# the same files in each run; `make test-all` selects `slow`
_REPRODUCIBLE = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)
settings.register_profile("default", _REPRODUCIBLE, max_examples=50)
settings.register_profile("slow", _REPRODUCIBLE, max_examples=2000)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALGATE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def splits(tmp_path: Path) -> RecordSplits:
    return tiny_splits(tmp_path)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random LLaVA and its processor."""
    folder = tmp_path_factory.mktemp("tiny-llava")
    save_tiny_llava(folder)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    """Seeds and subjects of the ordinary questions that are drawn; plain files take the place of drawings."""
    from lightning_neuralgate.demo import ordinary
    from tests.tasks.runs import write_data

    calls: list[tuple[int, list[str]]] = []

    def draw(folder: Path, seed: int, subjects: Sequence[str]) -> None:
        calls.append((seed, list(subjects)))
        shutil.rmtree(folder, ignore_errors=True)  # as real drawings replace those of an earlier run
        write_data(folder)
        (folder / "pope" / "val2014").rename(folder / "pope" / "images")
        name = picture(folder / "over_refusal" / "images" / "0.png").name
        rows: list[dict[str, Any]] = []
        for rung, number in product((0, 4), range(4)):
            row = {"id": f"rung_{rung}/{number}", "rung": rung, "image": f"images/{name}", "prompt": "Is it red?"}
            rows += [row, {**row, "id": f"{row['id']}/unsafe", "unsafe": True, "twin": row["id"]}]
        json_lines(folder / "over_refusal" / "ladder.jsonl", rows)

    monkeypatch.setattr(ordinary, "render_mini", draw)
    return calls


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and `edited`, two tiny models."""
    from tests.helpers.model_pair import save_pair  # imports all attacks

    folder = tmp_path_factory.mktemp("pair")
    save_pair(folder)
    return folder
