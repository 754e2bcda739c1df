from __future__ import annotations

from pathlib import Path

import pytest

from lightning_neuralgate.runtime.process import process_group_closed
from tests.helpers.launch import launch

SCRIPT = """
import os, pathlib, sys
import torch.distributed as dist
from lightning_neuralgate.runtime.process import process_group_closed

found = []
try:
    with process_group_closed():
        if "RANK" in os.environ:
            dist.init_process_group("gloo")
            found.append(dist.is_initialized())
        if sys.argv[2] == "error":
            raise ValueError("no more")
except ValueError as error:
    found.append(str(error))
found.append(dist.is_initialized())
pathlib.Path(sys.argv[1], "found" + os.environ.get("RANK", "0")).write_text(str(found))
"""


@pytest.mark.parametrize(
    ("world", "end", "found"),
    [(1, "well", "[False]"), (2, "well", "[True, False]"), (2, "error", "[True, 'no more', False]")],
)
def test_the_process_group_is_destroyed_after_the_block(tmp_path: Path, world: int, end: str, found: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(SCRIPT, encoding="utf-8")
    launch(str(script), str(tmp_path), end, world=world)
    assert [(tmp_path / f"found{rank}").read_text() for rank in range(world)] == [found] * world


def test_without_a_process_group_exceptions_pass_through() -> None:
    with pytest.raises(KeyError), process_group_closed():
        raise KeyError
