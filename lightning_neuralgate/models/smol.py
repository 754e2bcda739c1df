"""`smol-llava`: a LLaVA small enough for a laptop, built from SmolLM2-135M and a 2.8 M parameter CLIP tower.

The class is transformers' own `LlavaForConditionalGeneration`. The package ships the tower, the projector and a LoRA
adapter of the language model (`assets/smol_llava.safetensors`), trained by `recipes/train_smol_llava.py` on rendered
pictures; the language model is fetched once (see `smollm2`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_neuralgate.cache import cache_folder, written_whole
from lightning_neuralgate.errors import MissingDependencyError
from lightning_neuralgate.models.smollm2 import GGUF_SHA256, load_smollm2

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

WEIGHTS = Path(__file__).parent / "assets" / "smol_llava.safetensors"
IMAGE_SIZE = 144
PATCH_SIZE = 16
LORA_TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
LORA_RANK = 16

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def assemble_smol_llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """SmolLM2 behind a fresh (untrained) tower and projector. Training starts from here."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        GenerationConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    language_model, tokenizer = load_smollm2()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_token, end, pad = (int(tokenizer.vocab[token]) for token in ("<image>", "<|im_end|>", "<|endoftext|>"))
    language_model.resize_token_embeddings(len(tokenizer))
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language_model.config,
        image_token_index=image_token,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    decoder = {name.removeprefix("model."): value for name, value in language_model.state_dict().items()}
    decoder.pop("lm_head.weight", None)
    model.model.language_model.load_state_dict(decoder)
    model.tie_weights()
    tokenizer.pad_token = "<|endoftext|>"
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, bos_token_id=end - 1)
    model.config.get_text_config().pad_token_id = pad
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )
    return model.eval(), processor


def add_lora(model: LlavaForConditionalGeneration) -> None:
    """Put the shipped adapter's LoRA layers into the language model, in place (weights start as no change)."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=list(LORA_TARGETS))
    inject_adapter_in_model(config, model.model.language_model)


def trained_state(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """Tower, projector and LoRA tensors of a model after `add_lora`: all that the package ships."""
    kept = ("vision_tower", "multi_modal_projector", "lora_")
    return {name: value for name, value in model.state_dict().items() if any(part in name for part in kept)}


def merge_lora(model: LlavaForConditionalGeneration) -> None:
    """Fold the LoRA layers into the weights they adapt and take them out, in place."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())


def build_smol_llava(weights: Path = WEIGHTS) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The trained `smol-llava` in float32, from the shipped (half precision) weights."""
    from safetensors.torch import load_file

    if not weights.is_file():
        raise MissingDependencyError(f"no smol-llava weights at {weights}; make them with recipes/train_smol_llava.py")
    model, processor = assemble_smol_llava()
    add_lora(model)
    state = {name: value.float() for name, value in load_file(weights).items()}
    missing = set(trained_state(model)) ^ set(state)
    if missing:
        raise MissingDependencyError(f"{weights} does not fit smol-llava; missing or surplus: {sorted(missing)[:5]}")
    model.load_state_dict(state, strict=False)
    merge_lora(model)
    return model.eval(), processor


def smol_llava_key() -> str:
    """What tells one build of `smol-llava` from another: a hash of all that goes into it."""
    return hashlib.sha256(WEIGHTS.read_bytes() + GGUF_SHA256.encode() + CHAT_TEMPLATE.encode()).hexdigest()[:12]


def smol_llava_folder() -> Path:
    """A normal Hugging Face folder of `smol-llava`, built on the first call (about a minute) and cached.

    Example:
        `AutoModelForImageTextToText.from_pretrained(smol_llava_folder())`
    """
    folder = cache_folder() / f"smol-llava-{smol_llava_key()}"
    if not folder.is_dir():
        with written_whole(folder) as draft:
            model, processor = build_smol_llava()
            model.save_pretrained(draft)
            processor.save_pretrained(draft)
    return folder
