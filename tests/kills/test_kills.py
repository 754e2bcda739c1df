from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers.launch import launch


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing")
@pytest.mark.parametrize(
    ("module", "kills", "stages"),
    [
        ("runs", 15, ("render", "render over another")),
        ("runs", 15, ("locate", "edit")),
        ("runs", 15, ("eval",)),
        ("runs", 10, ("attack",)),
        ("task_runs", 10, ("greedy", "sampled")),
    ],
)
def test_a_killed_stage_ends_in_the_same_bytes(
    tmp_path: Path, module: str, kills: int, stages: tuple[str, ...]
) -> None:
    named = stages if module == "runs" else ()
    words = ("-m", f"tests.kills.{module}", str(tmp_path), str(kills), "0", *named)
    results = json.loads(launch(*words, NEURALGATE_CACHE=str(tmp_path / "cache")).splitlines()[-1])
    for stage in stages:
        assert results[stage]["kills"] >= kills
        assert results[stage]["different"] == [], stage


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing")
@pytest.mark.parametrize("stages", [("render", "render over another"), ("locate", "edit"), ("eval",)])
def test_two_runs_in_one_folder_end_as_one(tmp_path: Path, stages: tuple[str, ...]) -> None:
    words = ("-m", "tests.kills.two_runs", str(tmp_path), *stages)
    results = json.loads(launch(*words, NEURALGATE_CACHE=str(tmp_path / "cache")).splitlines()[-1])
    assert tuple(results) == stages
    for stage, result in results.items():
        assert result["different"] == [], stage
        # the second run starts while the first holds the folder, or after its end
        assert all(0 in codes and set(codes) <= {0, 1} for codes in result["codes"]), (stage, result["codes"])
        assert result["codes"][0] != [0, 0], f"{stage}: one of two runs that start together is refused"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing")
def test_a_full_disk_leaves_no_incomplete_file(tmp_path: Path) -> None:
    words = ("-m", "tests.kills.full_disk", str(tmp_path))
    results = json.loads(launch(*words, NEURALGATE_CACHE=str(tmp_path / "cache")).splitlines()[-1])
    assert len(results) == 11
    for stage, result in results.items():
        assert result["incomplete"] == [], stage
        assert result["different"] == [], stage
        assert 0 not in result["codes"][:2], (stage, result["codes"])
