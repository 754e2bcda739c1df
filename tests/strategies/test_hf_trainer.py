from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.gate.test_loop import ACCUMULATED, plain, weight
from tests.helpers.launch import launch
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import tiny_llava
from tests.strategies.hf_runs import rules
from tests.strategies.runs import micro_batches


@pytest.mark.slow
def test_two_processes_train_as_a_plain_loop_over_all_batches(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    launch("-m", "tests.strategies.hf_runs", str(tmp_path), world=2)
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    before = weight(tiny_llava())
    for scope in ("all", "divergence"):
        assert torch.equal(found[0][scope], found[1][scope])
        expected = plain(micro_batches(tmp_path / "data"), 2 * ACCUMULATED, **rules(scope))
        assert relative_error(found[0][scope] - before, expected - before) < 1e-4
        masked = (expected == before).all(1)
        assert bool(masked.any()) == (scope == "all")
        assert torch.equal(found[0][scope][masked], before[masked])
