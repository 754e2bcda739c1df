"""A tiny model and its training data, shared by the tests of all methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.data.records import RetentionItem
from lightning_neuralgate.methods.data import MethodData
from tests.helpers.tiny_llava import tiny_llava, tiny_processor, tiny_splits

RETENTION = (
    RetentionItem(query="What is blue?", target="The receipt"),
    RetentionItem(query="Tell me the colour, please.", target="red"),
)
LAYER = 1


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> MethodData:
    """Return the data of two subjects with one record each, and two ordinary questions; layer 1 of 3."""
    folder: Path = tmp_path_factory.mktemp("method-data")
    records = tiny_splits(folder, records=1).edit
    return MethodData.prepare(tiny_llava(), tiny_processor(), records, RETENTION, LAYER, trainer={"accelerator": "cpu"})


@pytest.fixture(scope="session")
def unedited() -> Any:
    """Return the model; methods leave it as it was, which each test relies on."""
    return tiny_llava()
