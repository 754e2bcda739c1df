"""SIGKILL at random moments of both stages: nothing is lost, and the result is the same to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_killed_stage_ends_in_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.kills.runs", str(tmp_path), "15", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NEURALGATE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    for stage in ("locate", "edit"):
        assert told[stage]["kills"] >= 15
        assert told[stage]["different"] == [], stage
