"""The MiniGPT-4 recipe, run as a script on a tiny random checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lightning_neuralgate import NeuralGate
from lightning_neuralgate.data.rendering.dataset import render_splits
from tests.helpers.launch import ROOT, launch
from tests.helpers.reference import relative_error
from tests.helpers.tiny_minigpt import save_tiny_minigpt, tiny_minigpt

RECIPE = ROOT / "recipes" / "minigpt_privacy.py"
WEIGHT = "model.language_model.layers.1.mlp.down_proj.weight"


def run(arguments: list[str], world: int = 1) -> str:
    return launch(str(RECIPE), *arguments, world=world)


@pytest.mark.parametrize("configs", [[], ["--config", "recipes/minigpt_privacy.yaml"]], ids=["bare", "yaml"])
def test_defaults_and_yaml_have_the_papers_settings(configs: list[str]) -> None:
    import yaml

    settings = yaml.safe_load(run([*configs, "--out", "x", "--print_config"]))
    expected = {"layers": [6], "tau": 0.3, "alpha": 1.25, "schedule": "paper", "max_steps": 25, "lr": None}
    assert {name: settings[name] for name in expected} == expected
    assert settings["model"] == "models/minigpt4-llama2-7b"


@pytest.mark.slow
def test_one_device_ddp_and_fsdp(tmp_path: Path) -> None:
    save_tiny_minigpt(tmp_path / "model")
    render_splits(tmp_path / "data", seed=0, edit_records=2, test_records=1, edit_pairs=1, test_pairs=1)
    options = {
        "--config": "recipes/minigpt_privacy.yaml", "--data.files": "[]", "--data.image_root": "null",
        "--data.folder": str(tmp_path / "data"), "--model": str(tmp_path / "model"), "--precision": "32-true",
        "--layers": "[1]", "--max_steps": "8", "--lr": "0.01", "--accelerator": "cpu",
    }  # fmt: skip
    common = [word for option in options.items() for word in option]
    run([*common, "--out", str(tmp_path / "single")])
    run([*common, "--config", "recipes/ddp.yaml", "--out", str(tmp_path / "ddp")])
    run([*common, "--config", "recipes/fsdp2.yaml", "--out", str(tmp_path / "fsdp")], world=2)

    weights = {}
    for name in ("single", "ddp", "fsdp"):
        gate = NeuralGate.from_pretrained(tmp_path / name / "gate")
        single = NeuralGate.from_pretrained(tmp_path / "single" / "gate")
        for subject in gate.subjects:
            assert torch.equal(gate.rates(subject, 1), single.rates(subject, 1)), name
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / name / "edited")
        weights[name] = model.state_dict()[WEIGHT]
        assert relative_error(weights[name], tiny_minigpt().state_dict()[WEIGHT]) > 1e-3
    # DDP and FSDP2 average over the same two halves of the data, so they take the same steps
    assert relative_error(weights["fsdp"], weights["ddp"]) < 1e-5
    assert relative_error(weights["ddp"], weights["single"]) > 1e-5
