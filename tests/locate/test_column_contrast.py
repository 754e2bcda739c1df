"""Columns located on two processes; `tests/gate/test_columns.py` compares the contrasts with a loop."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.locate.column_contrast import locate_columns
from tests.helpers.gloo import in_two_processes
from tests.helpers.tiny_llava import tiny_llava, tiny_splits
from tests.helpers.training import datamodule


def located(rank: int) -> dict[str, Any]:
    """Return the columns, the number of forward passes, and the error for batches that differ between the processes."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        batches = list(datamodule(tiny_splits(Path(folder)), pairs_per_batch=2).pairs_dataloader())
    model, passes = tiny_llava(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    gate = locate_columns(model, batches, [0, 1])
    found = {"fingerprint": gate.fingerprint, "queries": gate.queries, "passes": len(passes), "error": ""}
    try:
        locate_columns(model, batches[rank:], [1])
    except UnsupportedSetupError as error:
        found["error"] = str(error)
    return found


@pytest.mark.slow
def test_two_processes_share_the_batches_and_return_the_columns_of_one(tmp_path: Path) -> None:
    expected = located(0)
    assert expected["error"] == ""
    first, second = in_two_processes(located, tmp_path)
    for found in (first, second):
        assert (found["fingerprint"], found["queries"]) == (expected["fingerprint"], expected["queries"])
        assert "different batches in each process" in found["error"]
    assert first["passes"] + second["passes"] == expected["passes"] > 2
