"""Whatever a file contains, only this package's errors escape from its reader, and each names the file and the place.

`make test` tries 50 files per reader, `make test-all` 2,000 (the hypothesis profile `slow`).
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.damage import damaged
from tests.hostile.readers import READERS, refusal


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_only_our_errors_escape(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    content = data.draw(damaged(READERS[name].seeds()))
    folder: Path = tmp_path_factory.mktemp("hostile")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of damage that they can read
            refusal(READERS[name], folder, content)
    finally:
        shutil.rmtree(folder)
