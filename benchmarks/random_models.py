"""Models in the sizes of published ones, with seeded random weights: their cost is real, their answers mean nothing.

Nothing is downloaded. Weights are made in their own type, one tensor after another, so that the peak of memory is the size of
the model. The tokenizer is trained on the words of this package's records, so that prompts have about as many tokens as with
a published one; the embeddings keep the published vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BlipImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)
from transformers.initialization import no_init_weights

import lightning_neuralgate
from lightning_neuralgate.models.minigpt4 import (
    LLAMA2_TEMPLATE,
    MiniGPT4Config,
    MiniGPT4ForConditionalGeneration,
    MiniGPT4Processor,
)
from lightning_neuralgate.models.minigpt4.processing import IMAGE_TOKEN
from lightning_neuralgate.models.smol import llava_processor
from tests.helpers.tiny_checkpoints import template, without_video

QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>")


class Sizes(NamedTuple):
    """What is left of a published size: the lowest `depth` layers of decoder and tower, and widths divided by `shrink`."""

    depth: int | None = None
    shrink: int = 1

    def layers(self, published: int) -> int:
        """Number of layers."""
        return published if self.depth is None else min(published, self.depth)

    def width(self, published: int) -> int:
        """A width, or a number of attention heads, whose size stays as published."""
        return max(1, published // self.shrink)


FULL = Sizes()


def llava(sizes: Sizes) -> tuple[type[Any], Any, Any]:
    """LLaVA-1.5-7B: CLIP-L at 336 px, 576 image tokens, Vicuna."""
    processor = llava_processor(make_tokenizer("<image>"), 336, 14)
    vision = CLIPVisionConfig(
        hidden_size=sizes.width(1024), intermediate_size=sizes.width(4096), num_hidden_layers=sizes.layers(24),
        num_attention_heads=sizes.width(16), image_size=336, patch_size=14, projection_dim=sizes.width(768),
    )  # fmt: skip
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=_llama(sizes, 32064), image_token_index=image)
    return LlavaForConditionalGeneration, config, processor


def minigpt4(sizes: Sizes) -> tuple[type[Any], Any, Any]:
    """MiniGPT-4 with LLaMA-2-7B: EVA-ViT-g at 224 px, 64 image tokens."""
    processor = MiniGPT4Processor(
        BlipImageProcessorPil(size={"height": 224, "width": 224}), make_tokenizer(IMAGE_TOKEN), 64, LLAMA2_TEMPLATE
    )
    vision = {
        "hidden_size": sizes.width(1408), "intermediate_size": sizes.width(6144), "num_hidden_layers": sizes.layers(39),
        "num_attention_heads": sizes.width(16), "image_size": 224, "patch_size": 14,
    }  # fmt: skip
    config = MiniGPT4Config(
        vision_config=vision, text_config=_llama(sizes, 32001), image_token_index=processor.image_token_id
    )
    return MiniGPT4ForConditionalGeneration, config, processor


def qwen(sizes: Sizes) -> tuple[type[Any], Any, Any]:
    """Qwen2.5-VL-3B; the number of image tokens follows from the size of the picture."""
    without_video(Qwen2_5_VLProcessor)
    tokenizer = make_tokenizer(*QWEN_TOKENS)
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil(patch_size=14, merge_size=2), tokenizer, None,
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    depth = sizes.layers(32)
    vision = {
        "depth": depth, "hidden_size": sizes.width(1280), "intermediate_size": sizes.width(3420),
        "num_heads": sizes.width(16), "out_hidden_size": sizes.width(2048), "patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [index for index in (7, 15, 23, 31) if index < depth] or [depth - 1],
        "tokens_per_second": 2,
    }  # fmt: skip
    text = {
        "hidden_size": sizes.width(2048), "intermediate_size": sizes.width(11008), "num_hidden_layers": sizes.layers(36),
        "num_attention_heads": sizes.width(16), "num_key_value_heads": sizes.width(2), "vocab_size": 151936,
        "max_position_embeddings": 128000, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    names = ("vision_start_token_id", "vision_end_token_id", "video_token_id", "image_token_id")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=True, **ids)
    return Qwen2_5_VLForConditionalGeneration, config, processor


RANDOM_MODELS: dict[str, Callable[[Sizes], tuple[type[Any], Any, Any]]] = {
    "llava-1.5-7b": llava,
    "qwen2.5-vl-3b": qwen,
    "minigpt4-7b": minigpt4,
}


def random_model(name: str, sizes: Sizes = FULL, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> tuple[Any, Any]:
    """Return a random model, on the GPU if there is one, and its processor.

    Args:
        name: a key of `RANDOM_MODELS`.
        sizes: which part of it to build.
        dtype: type of the weights.
        seed: seed of the weights.
    """
    kind, config, processor = RANDOM_MODELS[name](sizes)
    with no_init_weights(), torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = kind._from_config(config, dtype=dtype)
    model.tie_weights()
    fill(model, seed)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model.eval(), processor


@torch.no_grad()
def fill(model: torch.nn.Module, seed: int) -> None:
    """Set weights to uniform noise of standard deviation 0.02, one tensor at a time, norms to 1 and biases to 0."""
    bound = 0.02 * 3**0.5
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.ndim > 1:
            generator = torch.Generator(parameter.device).manual_seed(seed * 100_003 + index)
            parameter.uniform_(-bound, bound, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def make_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer for the words of this package's records, with further special tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()), pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=list(special),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    data = Path(lightning_neuralgate.__file__).parent / "data"
    files = sorted([*data.glob("*.py"), *data.glob("rendering/*.py"), *data.glob("rendering/subjects/*.yaml")])
    tokenizer.train_from_iterator((file.read_text(encoding="utf-8") for file in files), trainer)
    return str(tokenizer.to_str())


def _llama(sizes: Sizes, vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=sizes.width(4096), intermediate_size=sizes.width(11008),
        num_hidden_layers=sizes.layers(32), num_attention_heads=sizes.width(32), num_key_value_heads=sizes.width(32),
        max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
