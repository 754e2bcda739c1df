"""Modules that quantizers may replace, by transformers' own rules; nothing is quantized here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from lightning_neuralgate.models.minigpt4 import MiniGPT4ForConditionalGeneration, MiniGPT4Model
from tests.helpers.tiny_minigpt import save_tiny_minigpt, tiny_minigpt


@pytest.mark.parametrize("skipped", [None, ["lm_head"]], ids=["default", "custom"])
@pytest.mark.parametrize("model_class", [MiniGPT4ForConditionalGeneration, MiniGPT4Model])
def test_only_tower_and_language_model_are_quantized(model_class: Any, skipped: list[str] | None) -> None:
    config = tiny_minigpt(use_qformer=True).config
    config.quantization_config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped)
    model = model_class(config)
    not_converted = HfQuantizer.get_modules_to_not_convert(model, skipped, model._keep_in_fp32_modules)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for suffix in ("", ".weight"):  # bitsandbytes matches modules, torchao their parameters
        converted = [name for name in linear if should_convert_module(name + suffix, not_converted)]
        assert {name.removeprefix("model.").split(".")[0] for name in converted} == {"vision_tower", "language_model"}
    assert "multi_modal_projector" in {name.removeprefix("model.") for name in linear}


@pytest.mark.parametrize("use_qformer", [False, True])
def test_without_a_quantizer_all_parameters_have_the_requested_dtype(tmp_path: Any, use_qformer: bool) -> None:
    save_tiny_minigpt(tmp_path, use_qformer)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_modules_of_different_dtypes_work_together() -> None:
    model = tiny_minigpt(use_qformer=True)
    pixels = torch.randn(1, 3, 32, 32)
    expected = model.get_image_features(pixels).pooler_output
    model.model.qformer.double()
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, expected)
