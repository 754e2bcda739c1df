from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    BlipImageProcessorPil,
    CLIPImageProcessor,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    InstructBlipProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from lightning_neuralgate.models.minigpt4 import LLAMA2_TEMPLATE, VICUNA_TEMPLATE, MiniGPT4Processor
from lightning_neuralgate.models.minigpt4.processing import IMAGE_TOKEN
from tests.helpers.tiny_llava import tiny_tokenizer
from tests.helpers.tiny_models import TINY_FAMILIES, TinySizes

SIZE = {"height": 16, "width": 16}
TOKENS = 4
"""Image tokens of a picture of 16 by 16 pixels."""


def template(picture: str) -> str:
    """Return a chat template with this text in place of a picture."""
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] + '\\n' }}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + picture + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def without_video(*processors: type[Any]) -> None:
    """Remove the video part of processors if its packages are not installed; no test uses videos."""
    if importlib.util.find_spec("torchvision") is None:
        SmolVLMProcessor.__init__.__defaults__ = (None, 169, None)  # makes the video processor optional
        for processor in processors:
            processor.get_attributes = classmethod(lambda cls: ["image_processor", "tokenizer"])  # type: ignore[attr-defined]
    if importlib.util.find_spec("num2words") is None:
        processing_smolvlm.num2words = str  # writes timestamps of video frames
    if not hasattr(SmolVLMProcessor, "video_processor"):
        SmolVLMProcessor.video_processor = SimpleNamespace(num_frames=1, fps=1)  # type: ignore[attr-defined]


def _qwen(kind: type[Any]) -> Callable[[PreTrainedTokenizerFast], Any]:
    def make(tokenizer: PreTrainedTokenizerFast) -> Any:
        pixels = {"shortest_edge": 16 * 16, "longest_edge": 16 * 16}
        images = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, size=pixels)
        return kind(images, tokenizer, None, chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"))

    return make


def _smolvlm(tokenizer: PreTrainedTokenizerFast) -> Any:
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    return SmolVLMProcessor(images, tokenizer, None, image_seq_len=1, chat_template=template("<picture>"))


def _instructblip(tokenizer: PreTrainedTokenizerFast) -> Any:
    return InstructBlipProcessor(BlipImageProcessorPil(size=SIZE), tokenizer, tiny_tokenizer(), num_query_tokens=TOKENS)


def _gemma3(tokenizer: PreTrainedTokenizerFast) -> Any:
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size=SIZE),
        tokenizer,
        image_seq_length=TOKENS,
        chat_template=template("<start_of_image>"),
    )


def _llava(tokenizer: PreTrainedTokenizerFast) -> Any:
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIZE)
    return LlavaProcessor(
        images, tokenizer, patch_size=8, num_additional_image_tokens=1, vision_feature_select_strategy="default",
        chat_template=template("<picture>"),
    )  # fmt: skip


def _onevision(tokenizer: PreTrainedTokenizerFast) -> Any:
    images = LlavaOnevisionImageProcessorPil(size=SIZE, image_grid_pinpoints=[[16, 16], [16, 32], [32, 16]])
    return LlavaOnevisionProcessor(
        images, tokenizer, None, num_image_tokens=TOKENS, vision_feature_select_strategy="full",
        chat_template=template("<picture>"),
    )  # fmt: skip


def _minigpt4(chat_template: str, tokens: int) -> Callable[[PreTrainedTokenizerFast], Any]:
    def make(tokenizer: PreTrainedTokenizerFast) -> Any:
        return MiniGPT4Processor(BlipImageProcessorPil(size=SIZE), tokenizer, tokens, chat_template)

    return make


_QWEN_TOKENS = {"end_token": "<|vision_end|>", "start_token": "<|vision_start|>", "video_token": "<|video_pad|>"}
# the special tokens of each family, with the image token last (see `TinySizes.image_token`), and the processor's factory
_PROCESSORS: dict[str, tuple[dict[str, str], Callable[[PreTrainedTokenizerFast], Any]]] = {
    "llava": ({"image_token": "<picture>"}, _llava),
    "minigpt4": ({"image_token": IMAGE_TOKEN}, _minigpt4(LLAMA2_TEMPLATE, 1)),
    "minigpt4_qformer": ({"image_token": IMAGE_TOKEN}, _minigpt4(VICUNA_TEMPLATE, TOKENS)),
    "qwen2_vl": (_QWEN_TOKENS | {"image_token": "<|image_pad|>"}, _qwen(Qwen2VLProcessor)),
    "qwen2_5_vl": (_QWEN_TOKENS | {"image_token": "<|image_pad|>"}, _qwen(Qwen2_5_VLProcessor)),
    "smolvlm": (
        {
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
            "image_token": "<picture>",
        },
        _smolvlm,
    ),
    "instructblip": ({}, _instructblip),
    "gemma3": (
        {"eoi_token": "<end_of_image>", "boi_token": "<start_of_image>", "image_token": "<image_soft_token>"},
        _gemma3,
    ),
    "llava_onevision": ({"video_token": "<film>", "image_token": "<picture>"}, _onevision),
}
CHECKPOINTS = tuple(_PROCESSORS)
"""Model families of which `tiny_checkpoint` can build a model."""


def tiny_checkpoint(family: str, layers: int = 3) -> tuple[Any, Any]:
    """Return a random model of a family, in eval mode, and its processor."""
    without_video(Qwen2VLProcessor, Qwen2_5_VLProcessor, SmolVLMProcessor, LlavaOnevisionProcessor)
    special, make = _PROCESSORS[family]
    tokenizer = tiny_tokenizer(**special)
    processor = make(tokenizer)
    torch.manual_seed(0)
    sizes = TinySizes(text_layers=layers, vocabulary=len(tokenizer))
    model = TINY_FAMILIES[family].build(sizes).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.2)  # larger than by default, so that answers differ
    if family == "instructblip":
        model.config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")  # a token that the processor adds
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor
