from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.launch import launch

SCRIPT = """
import atexit, os, pathlib, sys
import torch.distributed as dist
from lightning_neuralgate.process_group import destroy_process_group_at_exit

told = pathlib.Path(sys.argv[1], "told" + os.environ.get("RANK", "0"))
is_there = []

def tell():
    told.write_text(str([*is_there, dist.is_initialized()]))

atexit.register(tell)  # what is registered first is run last
destroy_process_group_at_exit()
destroy_process_group_at_exit()
if "RANK" in os.environ:
    dist.init_process_group("gloo")
    is_there.append(dist.is_initialized())
"""


@pytest.mark.parametrize(("world", "told"), [(1, "[False]"), (2, "[True, False]")])
def test_no_process_group_outlives_python(tmp_path: Path, world: int, told: str) -> None:
    script = tmp_path / "leaves.py"
    script.write_text(SCRIPT, encoding="utf-8")
    launch(str(script), str(tmp_path), world=world)
    assert [(tmp_path / f"told{rank}").read_text() for rank in range(world)] == [told] * world
