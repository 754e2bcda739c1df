"""Edits of a model in bfloat16 under DDP and FSDP2: float32 weights in training, rounded ones in the saved model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from tests.helpers.launch import launch
from tests.helpers.tiny_llava import tiny_llava

NAME = "model.language_model.layers.1.mlp.down_proj.weight"


def test_strategies_keep_one_weight_in_float32(tmp_path: Path) -> None:
    launch("-m", "tests.strategies.half_runs", "ddp,fsdp", str(tmp_path), world=2)
    before = tiny_llava().bfloat16().state_dict()
    changes = []
    for strategy in ("ddp", "fsdp"):
        (master,) = torch.load(tmp_path / f"{strategy}.ckpt", weights_only=True)["state_dict"].values()
        saved = LlavaForConditionalGeneration.from_pretrained(tmp_path / strategy, dtype="auto").state_dict()
        assert {value.dtype for value in saved.values()} == {torch.bfloat16}
        assert [name for name in before if not torch.equal(before[name], saved[name])] == [NAME]
        assert master.dtype == torch.float32
        assert torch.equal(saved[NAME], master.bfloat16())
        changed, kept = (int((value != before[NAME].to(value.dtype)).sum()) for value in (master, saved[NAME]))
        rounding = json.loads((tmp_path / f"{strategy}.json").read_text())
        assert rounding == {"dtype": "bfloat16", "changed": changed, "kept": kept}
        assert 0 < kept <= changed
        changes.append((master - before[NAME].float()).flatten())
    assert torch.nn.functional.cosine_similarity(*changes, dim=0) > 0.9
