"""Answers of the Q-Former variant end before the mark of the next turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

from lightning_neuralgate.hf.generation import generate_answers
from lightning_neuralgate.models.minigpt4 import MiniGPT4ForConditionalGeneration
from lightning_neuralgate.models.minigpt4.processing import EndsInMark, cut_at_mark, spellings
from tests.helpers.tiny_llama_tokenizer import tiny_llama_tokenizer
from tests.helpers.tiny_llava import tiny_tokenizer
from tests.helpers.tiny_minigpt import tiny_minigpt, tiny_minigpt_processor
from tests.models.minigpt4 import original
from tests.models.minigpt4.test_conversion import SIZES, convert, files

TEXTS = ("It is red.### Human: And", "It is a ## sign, blue and green and red. ###")


def test_spellings_of_llamas_pieces_are_those_that_minigpt4_stops_at() -> None:
    tokenizer = tiny_llama_tokenizer(legacy=True)
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in spellings(tokenizer)] == [["##", "#"], ["▁###"]]


def test_a_mark_ends_an_answer_and_is_cut_from_it() -> None:
    marks = [[5, 6], [7]]
    tokens = torch.tensor([[7, 1, 2, 5, 6], [7, 5, 7, 1, 1], [7, 6, 5, 1, 2], [5, 6, 3, 4, 5]])
    assert EndsInMark(marks)(tokens, None).tolist() == [True, False, False, False]
    assert EndsInMark(marks)(tokens[:, :1], None).tolist() == [True, True, True, False]
    cut = [[7, 1, 2, 0, 0], [7, 5, 0, 0, 0], [7, 6, 5, 1, 2], [5, 6, 3, 4, 5]]
    assert cut_at_mark(tokens, 1, marks, 0).tolist() == cut
    assert cut_at_mark(tokens[:, :1], 1, marks, 0).tolist() == [[7], [7], [7], [5]]


@pytest.fixture
def model() -> Iterator[MiniGPT4ForConditionalGeneration]:
    """Says `TEXTS`, whatever it is asked."""
    told = [tiny_tokenizer()(text)["input_ids"] for text in TEXTS]
    model = tiny_minigpt(use_qformer=True)
    model.config.turn_marks = spellings(tiny_tokenizer())
    step = 0

    def say(module: Any, given: Any, found: Tensor) -> Tensor:
        nonlocal step
        said = torch.full_like(found, -99.0)
        for row in range(len(said)):
            words = told[row * len(told) // len(said)]
            said[row, :, words[min(step, len(words) - 1)]] = 0
        step += 1
        return said

    hook = model.lm_head.register_forward_hook(say)
    yield model
    hook.remove()


def prompts() -> dict[str, Tensor]:
    asked = tiny_minigpt_processor(True).apply_chat_template(
        [{"role": "user", "content": "What is it?"}], tokenize=False
    )
    return dict(tiny_tokenizer()([asked, asked], return_tensors="pt"))


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"return_dict_in_generate": True}], ids=str)
def test_generate_needs_no_argument_for_it(model: MiniGPT4ForConditionalGeneration, options: dict[str, Any]) -> None:
    given = prompts()
    found = model.generate(**given, max_new_tokens=90, do_sample=False, **options)
    found = found if isinstance(found, Tensor) else found.sequences
    assert torch.equal(found[:, : given["input_ids"].shape[1]], given["input_ids"]), "the prompt's own marks stay"
    answers = tiny_tokenizer().batch_decode(found[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [answer.strip() for answer in answers] == ["It is red.", "It is a ## sign, blue and green and red."]
    assert found.shape[1] < given["input_ids"].shape[1] + 90, "it has stopped"


def test_padding_is_asked_for(model: MiniGPT4ForConditionalGeneration) -> None:
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"set generation_config\.pad_token_id"):
        model.generate(**prompts(), max_new_tokens=2)


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        (3, {}, 3),
        (3, {"generation_config": GenerationConfig(pad_token_id=5, max_new_tokens=90)}, 5),
        (3, {"generation_config": GenerationConfig(pad_token_id=5, max_new_tokens=90), "pad_token_id": 6}, 6),
        (None, {"eos_token_id": [7, 2]}, 7),
        (None, {"generation_config": GenerationConfig(eos_token_id=7, max_new_tokens=90)}, 7),
    ],
)
def test_what_is_cut_off_is_padded_as_generate_does(
    model: MiniGPT4ForConditionalGeneration, own: int | None, given: dict[str, Any], expected: int
) -> None:
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = own, None
    found = model.generate(**prompts(), max_new_tokens=90, do_sample=False, **given)
    assert found[0, -1] == expected, "the shorter answer"


def test_answers_of_this_library_end_there(model: MiniGPT4ForConditionalGeneration) -> None:
    told = generate_answers(model, tiny_tokenizer(), prompts(), 90, until=lambda answer: "blue" in answer)
    assert told == ["It is red.", "It is a ## sign, blue"]


def test_a_converted_folder_stops_there(tmp_path: Path) -> None:
    given = files(tmp_path, True)
    out = convert(given, tmp_path / "out", True, qformer_config=original.configs(SIZES)["qformer"])
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert model.config.turn_marks == spellings(tiny_tokenizer())
    assert model.generation_config.eos_token_id == [tiny_tokenizer().eos_token_id]
    llama = files(tmp_path / "llama2", False)
    model = AutoModelForImageTextToText.from_pretrained(convert(llama, tmp_path / "llama2" / "out"))
    assert model.config.turn_marks is None
