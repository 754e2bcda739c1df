from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import (
    BlipImageProcessorPil,
    CLIPImageProcessor,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InstructBlipProcessor,
    InternVLProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PaliGemmaProcessor,
    PixtralImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SiglipImageProcessorPil,
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


def pixtral_processor() -> type[Any]:
    """Return `PixtralProcessor`, which transformers refuses without torchvision, although it also works with PIL."""
    if importlib.util.find_spec("torchvision") is None:
        module = ModuleType("transformers.models.pixtral.image_processing_pixtral")
        module.get_resize_output_image_size = None  # type: ignore[attr-defined]  # not called
        sys.modules.setdefault(module.__name__, module)
    processing = importlib.import_module("transformers.models.pixtral.processing_pixtral")
    sys.modules["transformers.models.pixtral"].PixtralProcessor = processing.PixtralProcessor  # type: ignore[attr-defined]
    return processing.PixtralProcessor


def _qwen(kind: type[Any], patch_size: int = 14) -> Callable[[PreTrainedTokenizerFast], Any]:
    def make(tokenizer: PreTrainedTokenizerFast) -> Any:
        token = (2 * patch_size) ** 2  # pixels of an image token; a picture has 2 by 2 or 2 by 3 tokens
        pixels = {"shortest_edge": 4 * token, "longest_edge": 6 * token}
        images = Qwen2VLImageProcessorPil(patch_size=patch_size, merge_size=2, size=pixels)
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


def _idefics3(tokenizer: PreTrainedTokenizerFast) -> Any:
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=1, chat_template=template("<image>"))


def _paligemma(tokenizer: PreTrainedTokenizerFast) -> Any:
    images = SiglipImageProcessorPil(size=SIZE)
    images.image_seq_length = TOKENS
    return PaliGemmaProcessor(images, tokenizer)


def _internvl(tokenizer: PreTrainedTokenizerFast) -> Any:
    images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, min_patches=1, max_patches=1)
    return InternVLProcessor(images, tokenizer, None, TOKENS, chat_template=template("<picture>"))


def _mistral3(tokenizer: PreTrainedTokenizerFast) -> Any:
    images = PixtralImageProcessorPil(size={"longest_edge": 48}, patch_size={"height": 8, "width": 8})
    return pixtral_processor()(images, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=template("[IMG]"))


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
    "qwen3_vl": (_QWEN_TOKENS | {"image_token": "<|image_pad|>"}, _qwen(Qwen3VLProcessor, patch_size=16)),
    "idefics3": ({"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}, _idefics3),
    "paligemma2": ({}, _paligemma),
    "internvl": (
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<film>",
            "context_image_token": "<picture>",
        },
        _internvl,
    ),
    "mistral3": ({"break_token": "[IMG_BREAK]", "end_token": "[IMG_END]", "image_token": "[IMG]"}, _mistral3),
}
CHECKPOINTS = tuple(_PROCESSORS)
"""Model families of which `tiny_checkpoint` can build a model."""


def tiny_checkpoint(family: str, layers: int = 3) -> tuple[Any, Any]:
    """Return a random model of a family, in eval mode, and its processor."""
    without_video(
        Qwen2VLProcessor,
        Qwen2_5_VLProcessor,
        Qwen3VLProcessor,
        SmolVLMProcessor,
        LlavaOnevisionProcessor,
        InternVLProcessor,
    )
    special, make = _PROCESSORS[family]
    tokenizer = tiny_tokenizer(**special)
    processor = make(tokenizer)
    torch.manual_seed(0)
    # these add or fix the image token themselves
    image_id = processor.image_token_id if family in ("idefics3", "paligemma2") else None
    sizes = TinySizes(text_layers=layers, vocabulary=len(tokenizer), image_id=image_id)
    model = TINY_FAMILIES[family].build(sizes).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.2)  # larger than by default, so that answers differ
    if family == "instructblip":
        model.config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")  # a token that the processor adds
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor
