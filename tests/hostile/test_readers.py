"""Whatever a file contains, only this package's errors escape from its reader, and each names the file and the place.

`make test` tries 50 files per reader, `make test-all` 2,000 (the hypothesis profile `slow`).
"""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_neuralgate.errors import NeuralGateError
from tests.hostile.damage import damaged
from tests.hostile.readers import READERS


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_only_our_errors_escape(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    reader = READERS[name]
    content = data.draw(damaged(reader.seeds()))
    folder: Path = tmp_path_factory.mktemp("hostile")
    file = folder / reader.file
    file.write_bytes(content)
    message = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of damage that they can read
            reader.read(file)
    except NeuralGateError as error:
        message = str(error)
    finally:
        shutil.rmtree(folder)
    if message is not None:
        assert reader.file.partition(".")[0] in message, "the file is named"
        assert re.search(reader.place, message), f"the place is named: {message}"
