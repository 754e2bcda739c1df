"""Shared fixtures: each test gets an empty cache folder and runs with one thread."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from lightning_neuralgate.data.records import RecordSplits
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


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and `edited`, two tiny models."""
    from tests.helpers.model_pair import save_pair  # imports all attacks

    folder = tmp_path_factory.mktemp("pair")
    save_pair(folder)
    return folder
