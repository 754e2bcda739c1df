"""Original files of the LLaMA-2 variant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.minigpt4.original_files import Originals, write_originals


@pytest.fixture
def originals(tmp_path: Path) -> Originals:
    return write_originals(tmp_path, use_qformer=False)
