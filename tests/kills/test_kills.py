"""SIGKILL at random moments of both stages: nothing is lost, and the result is the same to the bit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers.launch import launch


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_killed_stage_ends_in_the_same_bytes(tmp_path: Path) -> None:
    printed = launch("-m", "tests.kills.runs", str(tmp_path), "15", "0", NEURALGATE_CACHE=str(tmp_path / "cache"))
    told = json.loads(printed.splitlines()[-1])
    for stage in ("locate", "edit"):
        assert told[stage]["kills"] >= 15
        assert told[stage]["different"] == [], stage
