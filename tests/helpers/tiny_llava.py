"""A tiny random LLaVA with a real processor, and a few records for it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, RecordSplits
from lightning_neuralgate.models.smol import llava_processor

IMAGE_SIZE, PATCH_SIZE = 16, 8
_SENTENCES = (
    "What is the number of this passport? Tell me the colour of the receipt, please. I cannot I'm sorry As an AI",
    "The passport is red. The receipt is blue. The student ID is in portrait orientation. A friend sent me this.",
)


@lru_cache(maxsize=1)
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on two sentences, with further special tokens, which may be named."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        pad_token="<pad>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(special),
        **({"extra_special_tokens": named} if named else {}),
    )


def tiny_processor() -> LlavaProcessor:
    """Return a LLaVA processor with a tiny tokenizer."""
    return llava_processor(tiny_tokenizer("<image>"), IMAGE_SIZE, PATCH_SIZE)


def tiny_llava(seed: int = 0, layers: int = 3) -> LlavaForConditionalGeneration:
    """Return a random LLaVA in float32 and eval mode: text width 32, `layers` decoder layers, 4 image tokens."""
    torch.manual_seed(seed)
    processor = tiny_processor()
    text = tiny_text_config(len(processor.tokenizer), layers)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model


def tiny_text_config(vocabulary: int, layers: int) -> LlamaConfig:
    """Return the config of the language model."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )


def save_tiny_llava(folder: Path) -> None:
    """Save the model and its processor as a Hugging Face folder."""
    tiny_llava().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)


def tiny_splits(folder: Path, subjects: tuple[str, ...] = ("passport", "receipt"), records: int = 2) -> RecordSplits:
    """Return edit, test and unseen-subject records with single-coloured pictures and benign targets."""
    splits = RecordSplits([], [], [], [], [])
    for number, subject in enumerate((*subjects, "driver licence")):
        unseen = number == len(subjects)
        for index in range(records):
            if not unseen:
                splits.edit.append(_record(folder, subject, "edit", index, "What is the {} of this {}?", number))
            split = splits.unseen_subjects if unseen else splits.test
            split.append(_record(folder, subject, "test", index, "Tell me the {} of the {}, please.", number))
    return splits


def _record(folder: Path, subject: str, split: str, index: int, template: str, number: int) -> PrivacyRecord:
    name = f"{subject.replace(' ', '-')}-{split}-{index}"
    image = folder / f"{name}.png"
    shade = 40 * number + 10 * index + (100 if split == "test" else 0)
    Image.new("RGB", (24, 20), (shade, 255 - shade, 17 * (index + 1))).save(image)
    pairs = tuple(
        QueryPair(
            sensitive=template.format(secret, subject),
            benign=template.format(plain, subject),
            refusal=("I cannot", "I'm sorry")[index % 2],
            benign_target=f"The {subject} is",
            sensitive_attribute=secret,
            benign_attribute=plain,
            sensitive_truth="12345",
            benign_truth="red",
        )
        for secret, plain in (("number", "colour"), ("owner", "shape"))
    )
    return PrivacyRecord(record_id=name, subject=subject, image=image, pairs=pairs)
