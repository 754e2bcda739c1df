"""Models for the benchmarks: `smol-llava`, also with as many image tokens as LLaVA-1.5, and random ones of true size."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from benchmarks.random_models import FULL, RANDOM_MODELS, Sizes, random_model
from lightning_neuralgate.models.loading import load_model
from lightning_neuralgate.models.smol import CHAT_TEMPLATE

IMAGE_TOKENS = {"smol": 81, "llava-1.5": 576}
GEOMETRIES = (*IMAGE_TOKENS, *RANDOM_MODELS)


def load_geometry(
    geometry: str, model: str = "smol-llava", sizes: Sizes = FULL, dtype: torch.dtype | None = None
) -> tuple[Any, Any]:
    """Load a model and its processor.

    Args:
        geometry: `llava-1.5` replaces the vision tower of `smol-llava` by an untrained one of the same width that makes 576
            image tokens (24 x 24 patches); other models are loaded unchanged. A key of `RANDOM_MODELS` builds a random model.
        model: `smol-llava`, a folder or a Hugging Face Hub repository; not used by random models.
        sizes: the part of a random model to build.
        dtype: type of the weights; by default bfloat16 for random models, and float32 for others.
    """
    if geometry in RANDOM_MODELS:
        return random_model(geometry, sizes, dtype or torch.bfloat16)
    network, processor = load_model(model, str(dtype or torch.float32).removeprefix("torch."))
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
