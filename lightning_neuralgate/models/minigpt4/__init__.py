"""MiniGPT-4 as a Hugging Face model; importing this package registers it with transformers' Auto classes."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from lightning_neuralgate.models.minigpt4.configuration import MiniGPT4Config
from lightning_neuralgate.models.minigpt4.modeling import MiniGPT4ForConditionalGeneration, MiniGPT4Model
from lightning_neuralgate.models.minigpt4.processing import LLAMA2_TEMPLATE, VICUNA_TEMPLATE, MiniGPT4Processor

__all__ = [
    "LLAMA2_TEMPLATE",
    "VICUNA_TEMPLATE",
    "MiniGPT4Config",
    "MiniGPT4ForConditionalGeneration",
    "MiniGPT4Model",
    "MiniGPT4Processor",
]

AutoConfig.register(MiniGPT4Config.model_type, MiniGPT4Config, exist_ok=True)
AutoModel.register(MiniGPT4Config, MiniGPT4Model, exist_ok=True)
AutoModelForImageTextToText.register(MiniGPT4Config, MiniGPT4ForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(MiniGPT4Config, MiniGPT4ForConditionalGeneration, exist_ok=True)
AutoProcessor.register(MiniGPT4Config, MiniGPT4Processor, exist_ok=True)
