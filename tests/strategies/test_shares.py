from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.launch import launch
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import tiny_llava
from tests.strategies.jobs import WEIGHT


@pytest.mark.slow
def test_kl_retention_and_the_dial_under_ddp_and_fsdp2(tmp_path: Path) -> None:
    launch("-m", "tests.strategies.shares", "ddp-2,fsdp-2", str(tmp_path), world=2)
    base = tiny_llava().state_dict()[WEIGHT]
    ddp, fsdp = (load_file(tmp_path / f"{strategy}.safetensors") for strategy in ("ddp-2", "fsdp-2"))
    for weights in (ddp, fsdp):
        assert torch.equal(weights["again"], weights["full"])
        assert torch.equal(weights["half"], base + 0.5 * (weights["full"] - base))
        assert not torch.equal(weights["full"], base)
    assert relative_error(fsdp["full"] - base, ddp["full"] - base) < 1e-3
    frontiers = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*-[01].json"))]
    assert len(frontiers) == 4
    assert all(frontier == frontiers[0] for frontier in frontiers)
    assert len(frontiers[0]) == 11
