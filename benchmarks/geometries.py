"""Models for the benchmarks: `smol-llava`, also with as many image tokens as LLaVA-1.5."""

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
    """Load a model and its processor.

    Args:
        geometry: `llava-1.5` replaces the vision tower of `smol-llava` by an untrained one of the same width that makes 576
            image tokens (24 x 24 patches); other models are loaded unchanged.
        model: `smol-llava`, a folder or a Hugging Face Hub repository.
    """
    network, processor = load_model(model)
    if torch.cuda.is_available():
        network = network.cuda()
    if geometry == "smol" or model != "smol-llava":
        return network, processor
    return with_image_tokens(network, processor, IMAGE_TOKENS[geometry])


def with_image_tokens(network: Any, processor: Any, tokens: int) -> tuple[Any, Any]:
    """Put the language model behind an untrained vision tower with the given number of image tokens, a square number."""
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"the number of image tokens must be a square number, got {tokens}")
    patch = network.config.vision_config.patch_size
    size = side * patch
    vision = {**network.config.vision_config.to_dict(), "image_size": size}
    config = LlavaConfig(
        **{**network.config.to_dict(), "vision_config": CLIPVisionConfig(**vision), "image_seq_length": tokens}
    )
    torch.manual_seed(0)
    resized = LlavaForConditionalGeneration(config).to(network.device).eval()
    state = {name: value for name, value in network.state_dict().items() if "vision_tower" not in name}
    resized.load_state_dict(state, strict=False)
    resized.tie_weights()
    resized.generation_config = network.generation_config
    image_processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return resized, LlavaProcessor(
        image_processor=image_processor,
        tokenizer=processor.tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )
