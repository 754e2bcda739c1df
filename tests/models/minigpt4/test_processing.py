"""MiniGPT-4's prompts, its processor, and the turn separator that ends an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.hf.forward import IGNORED
from lightning_neuralgate.hf.generation import generate_answers
from lightning_neuralgate.models.minigpt4 import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from lightning_neuralgate.models.minigpt4.processing import (
    TurnSeparatorCriteria,
    cut_at_separator,
    separator_token_ids,
)
from tests.helpers.tiny_llama_tokenizer import tiny_llama_tokenizer
from tests.helpers.tiny_llava import tiny_tokenizer
from tests.helpers.tiny_minigpt import IMAGE_SIZE, save_tiny_minigpt, tiny_minigpt, tiny_minigpt_processor

SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
QUESTION: dict[str, Any] = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
ANSWER: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
ANSWER_TEXTS = ("It is red.### Human: And", "It is a ## sign, blue and green and red. ###")
"""Answers of the `talking_model`, with turn separators."""


def prompt(messages: list[dict[str, Any]], use_qformer: bool) -> str:
    processor = tiny_minigpt_processor(use_qformer)
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>")  # the tiny tokenizer's special tokens


def test_prompt_of_the_llama_variant() -> None:
    first = f"<s>{SYSTEM}<s>[INST] <Img><ImageHere></Img> What is it? [/INST] "
    assert prompt([QUESTION], False) == first
    more = {"role": "user", "content": "And then?"}
    assert prompt([QUESTION, ANSWER, more], False) == f"{first}A cat.</s><s>[INST] And then? [/INST] "
    assert prompt([more], False) == "<s>[INST] And then? [/INST] ", "no picture, so no system text about one"
    system = {"role": "system", "content": "Be brief."}
    assert prompt([system, QUESTION], False) == first.replace(SYSTEM, "Be brief.")
    plain = {"role": "user", "content": "<Img><ImageHere></Img> What is it?"}
    assert prompt([plain], False) == first, "the picture's token in plain text"


def test_prompt_of_the_qformer_variant() -> None:
    first = f"<s>{SYSTEM}###Human: <Img><ImageHere></Img> What is it?###Assistant: "
    assert prompt([QUESTION], True) == first
    more = {"role": "user", "content": "And then?"}
    assert prompt([QUESTION, ANSWER, more], True) == f"{first}A cat.###Human: And then?###Assistant: "
    assert prompt([more], True) == "<s>###Human: And then?###Assistant: "


@pytest.mark.parametrize("use_qformer", [False, True])
def test_the_text_has_one_image_token_per_picture_feature(use_qformer: bool) -> None:
    processor = tiny_minigpt_processor(use_qformer)
    text = processor.apply_chat_template([QUESTION], add_generation_prompt=True, tokenize=False)
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    inputs = processor(text=[text, text], images=[picture, picture], return_tensors="pt", add_special_tokens=False)
    model = tiny_minigpt(use_qformer=use_qformer)
    counts = (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist()
    assert counts == [model.config.image_seq_length] * 2 == [processor.image_seq_length] * 2
    # a wide picture is resized, not cropped, and normalized like CLIP's
    assert inputs["pixel_values"].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert inputs["pixel_values"][0, 0].unique().item() == pytest.approx((1 - 0.48145466) / 0.26862954, abs=1e-5)
    assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape


@pytest.mark.parametrize("use_qformer", [False, True])
def test_a_templated_prompt_gets_one_bos_token(use_qformer: bool) -> None:
    processor = tiny_minigpt_processor(use_qformer, tiny_llama_tokenizer(legacy=True))
    bos = processor.tokenizer.bos_token_id
    text = processor.apply_chat_template([QUESTION], add_generation_prompt=True, tokenize=False)
    picture = Image.new("RGB", (40, 20))
    expected = processor(text=text, images=picture, add_special_tokens=False)["input_ids"]
    assert expected[0][0] == bos
    assert processor(text=[text], images=[picture])["input_ids"] == expected
    assert processor(images=picture, text=text, text_kwargs={"padding": False})["input_ids"] == expected
    assert processor(text="What is it?")["input_ids"][0][:1] == [bos], "other texts get one"
    assert processor(text=text, images=picture, add_special_tokens=True)["input_ids"][0][:2] == [bos, bos]


@pytest.mark.parametrize("use_qformer", [False, True])
def test_auto_classes_load_a_saved_folder(tmp_path: Path, use_qformer: bool) -> None:
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


def test_device_map_is_supported(tmp_path: Path) -> None:
    save_tiny_minigpt(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map="cpu")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_training_and_generation_use_the_same_prompt(tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (24, 20), (200, 0, 0)).save(picture)
    processor = tiny_minigpt_processor()
    collate = PrivacyPairCollator(processor)
    prompt_batch = collate([QueryRow("What is the number of this passport?", "sensitive", picture, "passport")])
    target_batch = collate(
        [QueryRow("What is the number of this passport?", "sensitive", picture, "passport", "I cannot")]
    )
    length = prompt_batch["input_ids"].shape[1]
    assert torch.equal(target_batch["input_ids"][:, :length], prompt_batch["input_ids"])
    target = target_batch["input_ids"][0, length:]
    assert processor.tokenizer.decode(target) == "I cannot"
    assert target_batch["labels"][0][target_batch["labels"][0] != IGNORED].tolist() == target.tolist()
    subject = target_batch["input_ids"][0][target_batch["subject_mask"][0]]
    assert processor.tokenizer.decode(subject).strip() == "passport"


def test_separator_token_ids_of_llama_are_those_of_the_original() -> None:
    tokenizer = tiny_llama_tokenizer(legacy=True)
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in separator_token_ids(tokenizer)] == [["##", "#"], ["▁###"]]


def test_a_separator_stops_an_answer_and_is_cut_from_it() -> None:
    separators = [[5, 6], [7]]
    tokens = torch.tensor([[7, 1, 2, 5, 6], [7, 5, 7, 1, 1], [7, 6, 5, 1, 2], [5, 6, 3, 4, 5]])
    assert TurnSeparatorCriteria(separators)(tokens, None).tolist() == [True, False, False, False]
    assert TurnSeparatorCriteria(separators)(tokens[:, :1], None).tolist() == [True, True, True, False]
    cut = [[7, 1, 2, 0, 0], [7, 5, 0, 0, 0], [7, 6, 5, 1, 2], [5, 6, 3, 4, 5]]
    assert cut_at_separator(tokens, 1, separators, 0).tolist() == cut
    assert cut_at_separator(tokens[:, :1], 1, separators, 0).tolist() == [[7], [7], [7], [5]]


@pytest.fixture
def talking_model() -> Iterator[MiniGPT4ForConditionalGeneration]:
    """Q-Former variant that answers every batch with `ANSWER_TEXTS`."""
    answers = [tiny_tokenizer()(text)["input_ids"] for text in ANSWER_TEXTS]
    model = tiny_minigpt(use_qformer=True)
    model.config.turn_marks = separator_token_ids(tiny_tokenizer())
    step = 0

    def fixed_logits(module: Any, inputs: Any, outputs: Tensor) -> Tensor:
        nonlocal step
        logits = torch.full_like(outputs, -99.0)
        for row in range(len(logits)):
            ids = answers[row * len(answers) // len(logits)]
            logits[row, :, ids[min(step, len(ids) - 1)]] = 0
        step += 1
        return logits

    hook = model.lm_head.register_forward_hook(fixed_logits)
    yield model
    hook.remove()


def prompts() -> dict[str, Tensor]:
    prompt = tiny_minigpt_processor(True).apply_chat_template(
        [{"role": "user", "content": "What is it?"}], tokenize=False
    )
    return dict(tiny_tokenizer()([prompt, prompt], return_tensors="pt"))


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"return_dict_in_generate": True}], ids=str)
def test_generate_stops_at_the_separator_without_arguments(
    talking_model: MiniGPT4ForConditionalGeneration, options: dict[str, Any]
) -> None:
    inputs = prompts()
    outputs = talking_model.generate(**inputs, max_new_tokens=90, do_sample=False, **options)
    tokens = outputs if isinstance(outputs, Tensor) else outputs.sequences
    assert torch.equal(tokens[:, : inputs["input_ids"].shape[1]], inputs["input_ids"]), "separators in the prompt stay"
    answers = tiny_tokenizer().batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [answer.strip() for answer in answers] == ["It is red.", "It is a ## sign, blue and green and red."]
    assert tokens.shape[1] < inputs["input_ids"].shape[1] + 90, "generation stopped early"


def test_a_missing_padding_token_raises(talking_model: MiniGPT4ForConditionalGeneration) -> None:
    talking_model.generation_config.pad_token_id = talking_model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"set generation_config\.pad_token_id"):
        talking_model.generate(**prompts(), max_new_tokens=2)


@pytest.mark.parametrize(
    ("default", "options", "expected"),
    [
        (3, {}, 3),
        (3, {"generation_config": GenerationConfig(pad_token_id=5, max_new_tokens=90)}, 5),
        (3, {"generation_config": GenerationConfig(pad_token_id=5, max_new_tokens=90), "pad_token_id": 6}, 6),
        (None, {"eos_token_id": [7, 2]}, 7),
        (None, {"generation_config": GenerationConfig(eos_token_id=7, max_new_tokens=90)}, 7),
    ],
)
def test_cut_answers_are_padded_like_generate_pads(
    talking_model: MiniGPT4ForConditionalGeneration, default: int | None, options: dict[str, Any], expected: int
) -> None:
    talking_model.generation_config.pad_token_id, talking_model.generation_config.eos_token_id = default, None
    tokens = talking_model.generate(**prompts(), max_new_tokens=90, do_sample=False, **options)
    assert tokens[0, -1] == expected, "the shorter answer"


def test_generate_answers_stops_at_the_separator(talking_model: MiniGPT4ForConditionalGeneration) -> None:
    answers = generate_answers(talking_model, tiny_tokenizer(), prompts(), 90, until=lambda answer: "blue" in answer)
    assert answers == ["It is red.", "It is a ## sign, blue"]
