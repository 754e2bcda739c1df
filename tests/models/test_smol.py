"""The embedded models, their shipped weights, and loading models by name."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoProcessor, LlamaForCausalLM

from lightning_neuralgate.errors import MissingDependencyError, ModelLayoutError
from lightning_neuralgate.models import smol_minigpt, smollm2
from lightning_neuralgate.models.loading import EMBEDDED_MODELS, embedded_model, load_model
from lightning_neuralgate.models.minigpt4.processing import IMAGE_TOKEN
from lightning_neuralgate.models.smol import add_lora, merge_lora, trained_state
from tests.helpers.tiny_llava import tiny_llava, tiny_processor, tiny_text_config, tiny_tokenizer
from tests.helpers.tiny_minigpt import tiny_minigpt


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_shipped_weights_are_small_and_without_language_model(name: str) -> None:
    file = embedded_model(name).weights
    assert file.stat().st_size < 20e6
    with safe_open(file, "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.float16}
    assert all("vision_tower" in name or "multi_modal_projector" in name or "lora_" in name for name in names)


def test_embedded_models_have_different_cache_keys() -> None:
    assert [embedded_model(name).name for name in EMBEDDED_MODELS] == list(EMBEDDED_MODELS)
    assert len({embedded_model(name).key() for name in EMBEDDED_MODELS}) == len(EMBEDDED_MODELS)


def test_reloaded_smol_minigpt_processor_pads_on_the_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(IMAGE_TOKEN)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN, "<|endoftext|>"]})
    language_model = LlamaForCausalLM(tiny_text_config(len(tokenizer), layers=1))
    monkeypatch.setattr(smol_minigpt, "smollm2_with", lambda token: (language_model, tokenizer))
    smol_minigpt.assemble_smol_minigpt()[1].save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.padding_side == "left"


@pytest.mark.parametrize("build", [tiny_llava, tiny_minigpt])
def test_merging_lora_keeps_the_outputs(build: Callable[[], Any]) -> None:
    model = build()
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(input_ids=ids).logits
    names = set(model.state_dict())
    add_lora(model)
    for name, value in trained_state(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.5)
    adapted = model(input_ids=ids).logits
    merge_lora(model)
    assert not torch.allclose(adapted, before, atol=1e-2)
    assert torch.allclose(model(input_ids=ids).logits, adapted, atol=1e-4)
    assert set(model.state_dict()) == names


def test_missing_weights_name_the_recipe(tmp_path: Path) -> None:
    for name in EMBEDDED_MODELS:
        with pytest.raises(MissingDependencyError, match=rf"train_smol_llava\.py --model {name}"):
            embedded_model(name).build(tmp_path / "none.safetensors")


def test_a_failed_download_raises_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(smollm2.OVERRIDE, raising=False)

    def fails(command: list[str], **kwargs: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "no network")

    monkeypatch.setattr(smollm2.subprocess, "run", fails)
    with pytest.raises(MissingDependencyError, match=r"no network\n.*set NEURALGATE_SMOLLM2_GGUF to its path"):
        smollm2.fetch_gguf()


def test_the_gguf_path_can_be_overridden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "override.gguf"
    monkeypatch.setenv(smollm2.OVERRIDE, str(file))
    with pytest.raises(MissingDependencyError, match=r"override\.gguf, which is not a file"):
        smollm2.fetch_gguf()
    file.touch()
    assert smollm2.fetch_gguf() == file


def test_load_model_loads_a_folder_and_raises_without_one(tmp_path: Path) -> None:
    tiny_llava().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    model, processor = load_model(tmp_path)
    assert not model.training
    assert model.state_dict()["lm_head.weight"].equal(tiny_llava().state_dict()["lm_head.weight"])
    assert processor.chat_template == tiny_processor().chat_template
    with pytest.raises(ModelLayoutError, match="there is no folder"):
        load_model(tmp_path / "nothing")
