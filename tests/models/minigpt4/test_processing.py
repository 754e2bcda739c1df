"""MiniGPT-4's prompts, word by word, and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.hf.forward import IGNORED
from lightning_neuralgate.models.minigpt4 import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from tests.helpers.tiny_llama_tokenizer import tiny_llama_tokenizer
from tests.helpers.tiny_minigpt import IMAGE_SIZE, save_tiny_minigpt, tiny_minigpt, tiny_minigpt_processor

SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
ASKED: dict[str, Any] = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
TOLD: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}


def prompt(messages: list[dict[str, Any]], use_qformer: bool) -> str:
    processor = tiny_minigpt_processor(use_qformer)
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>")  # the tiny tokenizer's own marks


def test_prompt_of_the_llama_variant() -> None:
    first = f"<s>{SYSTEM}<s>[INST] <Img><ImageHere></Img> What is it? [/INST] "
    assert prompt([ASKED], False) == first
    more = {"role": "user", "content": "And then?"}
    assert prompt([ASKED, TOLD, more], False) == f"{first}A cat.</s><s>[INST] And then? [/INST] "
    assert prompt([more], False) == "<s>[INST] And then? [/INST] ", "no picture, no word of one"
    own = {"role": "system", "content": "Be brief."}
    assert prompt([own, ASKED], False) == first.replace(SYSTEM, "Be brief.")
    plain = {"role": "user", "content": "<Img><ImageHere></Img> What is it?"}
    assert prompt([plain], False) == first, "its picture in plain text"


def test_prompt_of_the_qformer_variant() -> None:
    first = f"<s>{SYSTEM}###Human: <Img><ImageHere></Img> What is it?###Assistant: "
    assert prompt([ASKED], True) == first
    more = {"role": "user", "content": "And then?"}
    assert prompt([ASKED, TOLD, more], True) == f"{first}A cat.###Human: And then?###Assistant: "
    assert prompt([more], True) == "<s>###Human: And then?###Assistant: "


@pytest.mark.parametrize("use_qformer", [False, True])
def test_a_picture_gets_as_many_places_as_it_has_tokens(use_qformer: bool) -> None:
    processor = tiny_minigpt_processor(use_qformer)
    text = processor.apply_chat_template([ASKED], add_generation_prompt=True, tokenize=False)
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    inputs = processor(text=[text, text], images=[picture, picture], return_tensors="pt", add_special_tokens=False)
    model = tiny_minigpt(use_qformer=use_qformer)
    places = (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist()
    assert places == [model.config.image_seq_length] * 2 == [processor.image_seq_length] * 2
    # a wide picture is squeezed, not cut, and normed as CLIP's are
    assert inputs["pixel_values"].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert inputs["pixel_values"][0, 0].unique().item() == pytest.approx((1 - 0.48145466) / 0.26862954, abs=1e-5)
    assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape


@pytest.mark.parametrize("use_qformer", [False, True])
def test_a_prompt_of_the_template_begins_once(use_qformer: bool) -> None:
    processor = tiny_minigpt_processor(use_qformer, tiny_llama_tokenizer(legacy=True))
    begin = processor.tokenizer.bos_token_id
    text = processor.apply_chat_template([ASKED], add_generation_prompt=True, tokenize=False)
    picture = Image.new("RGB", (40, 20))
    expected = processor(text=text, images=picture, add_special_tokens=False)["input_ids"]
    assert expected[0][0] == begin
    assert processor(text=[text], images=[picture])["input_ids"] == expected
    assert processor(images=picture, text=text, text_kwargs={"padding": False})["input_ids"] == expected
    assert processor(text="What is it?")["input_ids"][0][:1] == [begin], "other texts get theirs"
    assert processor(text=text, images=picture, add_special_tokens=True)["input_ids"][0][:2] == [begin, begin]


@pytest.mark.parametrize("use_qformer", [False, True])
def test_auto_classes_load_what_was_saved(tmp_path: Path, use_qformer: bool) -> None:
    save_tiny_minigpt(tmp_path, use_qformer)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(model, MiniGPT4ForConditionalGeneration)
    assert isinstance(processor, MiniGPT4Processor)
    expected = tiny_minigpt(use_qformer=use_qformer)
    assert model.config.to_dict().keys() == expected.config.to_dict().keys()
    assert model.config.image_seq_length == processor.image_seq_length
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert processor.chat_template == tiny_minigpt_processor(use_qformer).chat_template


def test_device_map_places_the_parts(tmp_path: Path) -> None:
    save_tiny_minigpt(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map="cpu")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_a_target_is_trained_behind_the_prompt_that_generation_sees(tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (24, 20), (200, 0, 0)).save(picture)
    processor = tiny_minigpt_processor()
    collate = PrivacyPairCollator(processor)
    asked = collate([QueryRow("What is the number of this passport?", "sensitive", picture, "passport")])
    told = collate([QueryRow("What is the number of this passport?", "sensitive", picture, "passport", "I cannot")])
    length = asked["input_ids"].shape[1]
    assert torch.equal(told["input_ids"][:, :length], asked["input_ids"])
    target = told["input_ids"][0, length:]
    assert processor.tokenizer.decode(target) == "I cannot"
    assert told["labels"][0][told["labels"][0] != IGNORED].tolist() == target.tolist()
    subject = told["input_ids"][0][told["subject_mask"][0]]
    assert processor.tokenizer.decode(subject).strip() == "passport"
