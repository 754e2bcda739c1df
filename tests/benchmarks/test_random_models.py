from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.memory import bytes_of_weights
from benchmarks.random_models import RANDOM_MODELS, Sizes, random_model
from lightning_neuralgate.hf.decoder import find_decoder

PARAMETERS = {"llava-1.5-7b": 7.06e9, "qwen2.5-vl-3b": 3.75e9, "minigpt4-7b": 7.8e9}
"""Published numbers, MiniGPT-4's as the sum of LLaMA-2-7B and EVA-ViT-g."""


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_true_sizes(name: str) -> None:
    kind, config, _ = RANDOM_MODELS[name](Sizes())
    with torch.device("meta"):
        model = kind(config)
    model.tie_weights()
    assert bytes_of_weights(model) / 4 == pytest.approx(PARAMETERS[name], rel=0.01)


def test_weights_are_seeded_and_in_their_type() -> None:
    sizes = Sizes(depth=2, shrink=16)
    first, again, other = (random_model("llava-1.5-7b", sizes, seed=seed)[0] for seed in (0, 0, 1))
    assert {parameter.dtype for parameter in first.parameters()} == {torch.bfloat16}
    assert find_decoder(first).num_layers == 2
    changed = 0
    for (name, one), same, different in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert bool(one.isfinite().all()), name
        assert torch.equal(one, same), name
        changed += not torch.equal(one, different)
        assert one.ndim == 1 or float(one.float().std()) == pytest.approx(0.02, rel=0.2), name
    assert changed > 10
    assert first.model.language_model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("name", RANDOM_MODELS)
@pytest.mark.parametrize(
    ("benchmark", "options"),
    [
        ("locate", "--layer 0 --records 1 --together 1 --steps 3 --dtype float32"),
        ("edit", "--layer 1 --batches 1 --steps 2 --dtype float32"),
        ("memory", "--layer 1 --steps 2"),
    ],
)
def test_benchmarks_run_on_a_cut(
    name: str, benchmark: str, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = tmp_path / "results.json"
    cut = f"--geometry {name} --depth 3 --shrink 16 --json {file} {options}"
    monkeypatch.setattr(sys, "argv", [benchmark, *cut.split()])
    import_module(f"benchmarks.{benchmark}").main()
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["geometry"] == name
    assert results["dtype"] == ("bfloat16" if benchmark == "memory" else "float32")
    if benchmark == "memory":
        assert 0 < results["weights_gb"] < 1
        assert results["locate_gb"] > 0
        assert results["edit_gb"] > 0
    else:
        assert results["agree"] is True
        assert results["ratio"] > 0
    assert results["tokens"] > {"llava-1.5-7b": 576, "qwen2.5-vl-3b": 64, "minigpt4-7b": 64}[name]
