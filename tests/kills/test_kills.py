from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers.launch import launch


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing")
@pytest.mark.parametrize(
    ("module", "kills", "stages"), [("runs", 15, ("locate", "edit")), ("task_runs", 10, ("greedy", "sampled"))]
)
def test_a_killed_stage_ends_in_the_same_bytes(
    tmp_path: Path, module: str, kills: int, stages: tuple[str, ...]
) -> None:
    words = ("-m", f"tests.kills.{module}", str(tmp_path), str(kills), "0")
    results = json.loads(launch(*words, NEURALGATE_CACHE=str(tmp_path / "cache")).splitlines()[-1])
    for stage in stages:
        assert results[stage]["kills"] >= kills
        assert results[stage]["different"] == [], stage
