"""`smol-minigpt`: a MiniGPT-4 small enough for a laptop, built from SmolLM2-135M and a BLIP-2 tower of 3.7 M parameters.

It has MiniGPT-4's class, prompt and grouping: a linear layer makes one image token from four consecutive patches. The package
ships the tower, the projector and a LoRA adapter of the language model (`assets/smol_minigpt.safetensors`), trained by
`recipes/train_smol_llava.py --model smol-minigpt`.
"""

from __future__ import annotations

from transformers import Blip2VisionConfig, BlipImageProcessorPil

from lightning_neuralgate.models.minigpt4 import (
    LLAMA2_TEMPLATE,
    MiniGPT4Config,
    MiniGPT4ForConditionalGeneration,
    MiniGPT4Processor,
)
from lightning_neuralgate.models.minigpt4.processing import IMAGE_TOKEN
from lightning_neuralgate.models.smol import WEIGHTS, EmbeddedModel, put_language_model, smollm2_with

IMAGE_SIZE = 160
PATCH_SIZE = 16
READING_LAYERS = 6
"""Lower layers of the tower, which read the characters in each patch. The two layers above sort them into reading order."""


def assemble_smol_minigpt() -> tuple[MiniGPT4ForConditionalGeneration, MiniGPT4Processor]:
    """Return SmolLM2 with an untrained tower and projector, and its processor, as training starts from them."""
    language_model, tokenizer = smollm2_with(IMAGE_TOKEN)
    vision = Blip2VisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=READING_LAYERS + 2,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        initializer_range=0.02,
    )
    config = MiniGPT4Config(
        vision_config=vision,
        text_config=language_model.config,
        image_token_index=int(tokenizer.vocab[IMAGE_TOKEN]),
        tie_word_embeddings=True,
    )
    model = MiniGPT4ForConditionalGeneration(config)
    put_language_model(model, language_model, tokenizer)
    processor = MiniGPT4Processor(
        image_processor=BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tokenizer,
        image_seq_length=config.image_seq_length,
    )
    return model.eval(), processor


SMOL_MINIGPT = EmbeddedModel(
    "smol-minigpt", WEIGHTS.with_name("smol_minigpt.safetensors"), LLAMA2_TEMPLATE, assemble_smol_minigpt
)
