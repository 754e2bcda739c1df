"""The LLaVA recipe, run as a script on a tiny random checkpoint."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from lightning_neuralgate import NeuralGate
from lightning_neuralgate.data.rendering.dataset import render_retention, render_splits
from tests.helpers.launch import ROOT, launch
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import tiny_llava

RECIPE = ROOT / "recipes" / "llava_privacy.py"
WEIGHT = "model.language_model.layers.1.mlp.down_proj.weight"


def run(arguments: list[str], world: int = 1) -> str:
    return launch(str(RECIPE), *arguments, world=world)


def test_yaml_has_the_papers_settings() -> None:
    import yaml

    printed = run(["--config", "recipes/llava_privacy.yaml", "--print_config"])
    settings = yaml.safe_load(printed)
    expected = {"layers": [11], "tau": 0.3, "alpha": 1.25, "schedule": "paper", "max_steps": 25, "lr": None}
    assert {name: settings[name] for name in expected} == expected


def test_one_device_ddp_and_fsdp(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    render_splits(data, seed=0, edit_records=2, test_records=1, edit_pairs=1, test_pairs=1)
    options = {
        "--config": "recipes/llava_privacy.yaml", "--data.files": "[]", "--data.image_root": "null",
        "--data.folder": str(data), "--model": str(checkpoint), "--precision": "32-true", "--layers": "[1]",
        "--max_steps": "8", "--lr": "0.01", "--accelerator": "cpu",
    }  # fmt: skip
    common = [word for option in options.items() for word in option]
    run([*common, "--measure_every", "5", "--out", str(tmp_path / "single")])
    with (tmp_path / "single" / "logs" / "edit" / "metrics.csv").open() as lines:
        steps = [int(row["step"]) for row in csv.DictReader(lines) if row["held_out/test/eta"]]
    assert steps[0] == 0
    assert len(steps) > 2
    render_retention(data, seed=0, count=2, public=2)
    run([*common, "--data.retention", str(data / "retention.jsonl"), "--out", str(tmp_path / "retention")])
    run([*common, "--config", "recipes/ddp.yaml", "--out", str(tmp_path / "ddp")])
    run([*common, "--config", "recipes/fsdp2.yaml", "--out", str(tmp_path / "fsdp")], world=2)
    lora = ["--config", "recipes/lora.yaml", "--dtype", "float32", "--lora_rank", "4", "--schedule", "paper"]
    run([*common, *lora, "--lr", "0.01", "--out", str(tmp_path / "lora")])

    weights, gates = {}, {}
    for name in ("single", "retention", "ddp", "fsdp", "lora"):
        folder = tmp_path / name
        gates[name] = NeuralGate.from_pretrained(folder / "gate")
        weights[name] = LlavaForConditionalGeneration.from_pretrained(folder / "edited").state_dict()[WEIGHT]
        assert set(json.loads((folder / "metrics.json").read_text())) == {
            "val/rta_sensitive", "val/answer_rate_benign", "val/eta", "val/leak_rate", "val/benign_accuracy", "seed",
        }  # fmt: skip
        assert not (folder / "unfinished").exists()
    base = tiny_llava().state_dict()[WEIGHT]
    for name, gate in gates.items():
        assert gate.records == {"passport": 2, "student id": 2, "receipt": 2}
        for subject in gate.subjects:
            assert torch.equal(gate.rates(subject, 1), gates["single"].rates(subject, 1)), name
        assert any(gate.mask(subject, 1).any() for subject in gate.subjects), (
            "all gates are empty, so the comparison is meaningless"
        )
        assert relative_error(weights[name], base) > 1e-3
    # DDP and FSDP2 average over the same two halves of the data, so they take the same steps
    assert relative_error(weights["fsdp"], weights["ddp"]) < 1e-5
    assert relative_error(weights["ddp"], weights["single"]) > 1e-5
    assert relative_error(weights["retention"], weights["single"]) > 1e-5


@pytest.mark.parametrize("overlay", ["ddp", "fsdp2", "lora"])
def test_overlays_are_valid_and_contain_their_launch_line(overlay: str) -> None:
    import yaml

    file = ROOT / "recipes" / f"{overlay}.yaml"
    configs = ["--config", "recipes/llava_privacy.yaml", "--config", f"recipes/{overlay}.yaml"]
    printed = yaml.safe_load(run([*configs, "--print_config"]))
    changes = yaml.safe_load(file.read_text())
    assert {name: printed[name] for name in changes} == changes
    assert printed["model"] == "llava-hf/llava-1.5-7b-hf"
    assert f"llava_privacy.py {' '.join(configs)}" in file.read_text()


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.py")))
def test_recipes_start_with_their_launch_line(recipe: str) -> None:
    assert f"    python recipes/{recipe}" in (ROOT / "recipes" / recipe).read_text()[:1500]
