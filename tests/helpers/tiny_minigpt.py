from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BlipImageProcessorPil

from lightning_neuralgate.models.minigpt4 import (
    LLAMA2_TEMPLATE,
    VICUNA_TEMPLATE,
    MiniGPT4Config,
    MiniGPT4ForConditionalGeneration,
    MiniGPT4Processor,
)
from lightning_neuralgate.models.minigpt4.processing import IMAGE_TOKEN
from tests.helpers.tiny_llava import tiny_text_config, tiny_tokenizer

IMAGE_SIZE, PATCH_SIZE = 32, 8


def tiny_minigpt_processor(use_qformer: bool = False, tokenizer: Any = None) -> MiniGPT4Processor:
    """Return a processor with the variant's chat template; the image token is added to a given tokenizer."""
    if tokenizer is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return MiniGPT4Processor(
        image_processor=BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tokenizer or tiny_tokenizer(IMAGE_TOKEN),
        image_seq_length=3 if use_qformer else 4,
        chat_template=VICUNA_TEMPLATE if use_qformer else LLAMA2_TEMPLATE,
    )


def tiny_minigpt(layers: int = 2, seed: int = 0, use_qformer: bool = False) -> MiniGPT4ForConditionalGeneration:
    """Return a random model for `tiny_minigpt_processor`, in eval mode."""
    torch.manual_seed(seed)
    tokenizer = tiny_minigpt_processor().tokenizer
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    qformer = {**vision, "hidden_size": 12, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = MiniGPT4Config(
        vision_config={**vision, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "initializer_range": 0.3},
        text_config=tiny_text_config(len(tokenizer), layers),
        qformer_config=qformer if use_qformer else None,
        use_qformer=use_qformer,
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    model = MiniGPT4ForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def save_tiny_minigpt(folder: Path, use_qformer: bool = False) -> None:
    """Save model and processor as a Hugging Face folder."""
    tiny_minigpt(use_qformer=use_qformer).save_pretrained(folder)
    tiny_minigpt_processor(use_qformer).save_pretrained(folder)
