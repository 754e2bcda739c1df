"""The models that are timed: `smol-llava` as it is, or with as many image tokens as LLaVA-1.5 has."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from lightning_neuralgate.models.loading import load_model
from lightning_neuralgate.models.smol import CHAT_TEMPLATE

Geometry = Literal["smol", "llava-1.5"]
IMAGE_TOKENS = {"smol": 81, "llava-1.5": 576}


def load_geometry(geometry: Geometry, model: str = "smol-llava") -> tuple[Any, Any]:
    """A model and its processor.

    Args:
        geometry: `llava-1.5` puts 576 image tokens (24 x 24 patches) before the question, from an untrained tower of the
            same width, on the same language model; for a `model` of another name it is left as it is.
        model: `smol-llava`, a folder or a hub repository.
    """
    network, processor = load_model(model)
    if torch.cuda.is_available():
        network = network.cuda()
    return (
        (network, processor)
        if geometry == "smol" or model != "smol-llava"
        else with_image_tokens(network, processor, 576)
    )


def with_image_tokens(network: Any, processor: Any, tokens: int) -> tuple[Any, Any]:
    """The same language model behind a fresh tower that makes so many image tokens, a square number."""
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"image tokens come in squares, got {tokens}")
    patch = network.config.vision_config.patch_size
    size = side * patch
    vision = {**network.config.vision_config.to_dict(), "image_size": size}
    config = LlavaConfig(
        **{**network.config.to_dict(), "vision_config": CLIPVisionConfig(**vision), "image_seq_length": tokens}
    )
    torch.manual_seed(0)
    wider = LlavaForConditionalGeneration(config).to(network.device).eval()
    state = {name: value for name, value in network.state_dict().items() if "vision_tower" not in name}
    wider.load_state_dict(state, strict=False)
    wider.tie_weights()
    wider.generation_config = network.generation_config
    pictures = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return wider, LlavaProcessor(
        image_processor=pictures,
        tokenizer=processor.tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )
