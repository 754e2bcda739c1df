"""The LLaVA and MiniGPT-4 recipes, run as scripts on tiny random checkpoints."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

from lightning_neuralgate import NeuralGate
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.data.retention import render_retention
from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.hf.identity import ModelIdentity
from tests.helpers.launch import ROOT, launch
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import save_tiny_llava
from tests.helpers.tiny_minigpt import save_tiny_minigpt

LLAVA, MINIGPT = "recipes/llava_privacy", "recipes/minigpt_privacy"
SAVE_MODEL = {LLAVA: save_tiny_llava, MINIGPT: save_tiny_minigpt}


@pytest.mark.parametrize(
    ("recipe", "configs", "layer", "model"),
    [
        (LLAVA, ["--config", f"{LLAVA}.yaml"], 11, "llava-hf/llava-1.5-7b-hf"),
        (MINIGPT, ["--config", f"{MINIGPT}.yaml"], 6, "models/minigpt4-llama2-7b"),
        (MINIGPT, [], 6, "models/minigpt4-llama2-7b"),
    ],
    ids=["llava", "minigpt4", "minigpt4 without yaml"],
)
def test_defaults_and_yaml_have_the_papers_settings(recipe: str, configs: list[str], layer: int, model: str) -> None:
    settings = yaml.safe_load(launch(f"{recipe}.py", *configs, "--out", "x", "--print_config"))
    expected = {"tau": 0.3, "alpha": 1.25, "schedule": "paper", "max_steps": 25, "lr": None}
    expected |= {"layers": [layer], "model": model}
    assert {name: settings[name] for name in expected} == expected


def weight(folder: Path) -> torch.Tensor:
    state: dict[str, Any] = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    return state["model.language_model.layers.1.mlp.down_proj.weight"]


@pytest.mark.parametrize("recipe", [LLAVA, pytest.param(MINIGPT, marks=pytest.mark.slow)], ids=["llava", "minigpt4"])
def test_one_device_ddp_and_fsdp(recipe: str, tmp_path: Path) -> None:
    data, model = tmp_path / "data", tmp_path / "model"
    SAVE_MODEL[recipe](model)
    render_splits(data, seed=0, edit_records=2, test_records=1, edit_pairs=1, test_pairs=1)
    options = {
        "--config": f"{recipe}.yaml", "--data.files": "[]", "--data.image_root": "null", "--data.folder": str(data),
        "--model": str(model), "--precision": "32-true", "--layers": "[1]", "--max_steps": "8", "--lr": "0.01",
        "--accelerator": "cpu",
    }  # fmt: skip
    runs = {
        "single": ["--measure_every", "5"],
        "ddp": ["--config", "recipes/ddp.yaml"],
        "fsdp": ["--config", "recipes/fsdp2.yaml"],
    }
    if recipe == LLAVA:
        render_retention(data, seed=0, forms="open", count=4)
        lora = ["--config", "recipes/lora.yaml", "--dtype", "float32", "--lora_rank", "4", "--schedule", "paper"]
        runs |= {
            "retention": ["--data.retention", str(data / "retention.jsonl")],
            "lora": [*lora, "--lr", "0.01"],
        }
    weights = {}
    for name, changes in runs.items():
        folder = tmp_path / name
        common = [word for option in options.items() for word in option]
        launch(f"{recipe}.py", *common, *changes, "--out", str(folder), world=2 if name == "fsdp" else 1)
        gate, single = (NeuralGate.from_pretrained(tmp_path / run / "gate") for run in (name, "single"))
        assert gate.records == {"passport": 2, "student id": 2, "receipt": 2}
        for subject in gate.subjects:
            assert torch.equal(gate.rates(subject, 1), single.rates(subject, 1)), name
        assert any(gate.mask(subject, 1).any() for subject in gate.subjects), (
            "all gates are empty, so the comparison is meaningless"
        )
        weights[name] = weight(folder / "edited")
        assert relative_error(weights[name], weight(model)) > 1e-3
        assert set(json.loads((folder / "metrics.json").read_text())) == {
            "val/rta_sensitive", "val/answer_rate_benign", "val/eta", "val/leak_rate", "val/benign_accuracy", "seed",
        }  # fmt: skip
        assert not (folder / "unfinished").exists()
    # DDP and FSDP2 average over the same two halves of the data, so they take the same steps
    assert relative_error(weights["fsdp"], weights["ddp"]) < 1e-5
    for name in runs.keys() - {"single", "fsdp", "lora"}:
        assert relative_error(weights[name], weights["single"]) > 1e-5
    with (tmp_path / "single" / "logs" / "edit" / "metrics.csv").open() as lines:
        steps = [int(row["step"]) for row in csv.DictReader(lines) if row["held_out/test/eta"]]
    assert steps[0] == 0
    assert len(steps) > 2


@pytest.mark.slow
def test_keep_kl_and_the_dial(tmp_path: Path) -> None:
    data, model, out = tmp_path / "data", tmp_path / "model", tmp_path / "out"
    save_tiny_llava(model)
    sizes = {"edit_records": 1, "test_records": 1, "edit_pairs": 1, "test_pairs": 1, "validation_records": 1}
    render_splits(data, seed=0, **sizes)  # type: ignore[arg-type]
    render_retention(data, seed=0, forms="open", count=4)
    identity = ModelIdentity.of(AutoModelForImageTextToText.from_pretrained(model))
    keys = InputCovariance({1: torch.diag(torch.arange(1.0, 49.0))}, identity, tokens=1, prompts=1)
    keys.save_pretrained(tmp_path / "keys")
    launch(
        f"{LLAVA}.py", "--data.folder", str(data), "--data.retention", str(data / "retention.jsonl"), "--model", str(model),
        "--precision", "32-true", "--layers", "[1]", "--max_steps", "2", "--lr", "0.01", "--accelerator", "cpu", "--keep",
        str(tmp_path / "keys"), "--retention_loss", "kl", "--max_leak", "1.0", "--eval_batches", "0", "--out", str(out),
    )  # fmt: skip
    dial = json.loads((out / "dial.json").read_text())
    assert (dial["scale"], dial["max_leak"], len(dial["frontier"])) == (0.1, 1.0, 11)
    change = weight(out / "edited") - weight(model)
    assert change.norm() > 0
    kept_out = keys.projector(1, share=0.9).directions
    assert (change @ kept_out).norm() < 1e-3 * change.norm()


@pytest.mark.parametrize("overlay", ["ddp", "fsdp2", "lora"])
def test_overlays_are_valid_and_contain_their_launch_line(overlay: str) -> None:
    text = (ROOT / "recipes" / f"{overlay}.yaml").read_text()
    configs = ["--config", f"{LLAVA}.yaml", "--config", f"recipes/{overlay}.yaml"]
    printed, changes = yaml.safe_load(launch(f"{LLAVA}.py", *configs, "--print_config")), yaml.safe_load(text)
    assert {name: printed[name] for name in changes} == changes
    assert printed["model"] == "llava-hf/llava-1.5-7b-hf"
    assert f"llava_privacy.py {' '.join(configs)}" in text


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.py")))
def test_recipes_start_with_their_launch_line(recipe: str) -> None:
    assert f"    python recipes/{recipe}" in (ROOT / "recipes" / recipe).read_text()[:1500]
