"""Answers end early on a predicate, ignore the checkpoint's generation config, and may come without the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, LogitsProcessor

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.hf.generation import generate_answers, start_and_stop_settings, without_generation_config
from lightning_neuralgate.metrics.functional import is_refusal, verdict_stands
from lightning_neuralgate.prefix_cache.generate import generate_with_shared_prefix
from tests.helpers.tiny_llava import tiny_llava, tiny_processor

ANSWERS = (
    "I'm sorry, I can't tell you the number of this card.",
    "The number of the card is 4 2 4 2 4 2, I cannot lie.",
)


class ForcedAnswers(LogitsProcessor):
    """Force one answer of `ANSWERS` per row."""

    def __init__(self, tokenizer: Any, prompt: int) -> None:
        self.rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ANSWERS]
        self.prompt, self.steps, self.end = prompt, 0, tokenizer.eos_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt
        self.steps += 1
        chosen = [row[step] if step < len(row) else self.end for row in self.rows]
        return torch.full_like(scores, float("-inf")).scatter(1, torch.tensor(chosen)[:, None], 0.0)


@pytest.fixture
def batch(tmp_path: Path) -> dict[str, Any]:
    """Two questions about one picture."""
    Image.new("RGB", (30, 30), "red").save(tmp_path / "0.png")
    rows = [
        QueryRow(f"What is the {what} of the card?", "sensitive", tmp_path / "0.png") for what in ("number", "code")
    ]
    return PrivacyPairCollator(tiny_processor(), "left")(rows)


@pytest.fixture(params=[False, True], ids=["full", "shared"])
def generate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Generation of both questions' answers, with and without their common prefix."""
    monkeypatch.setattr("lightning_neuralgate.prefix_cache.generate._MIN_PREFIX", 4)

    def with_shared_prefix(model: Any, tokenizer: Any, batch: dict[str, Any], *options: Any) -> list[str]:
        return generate_with_shared_prefix(model, tokenizer, batch, ["0", "0"], *options)

    return with_shared_prefix if request.param else generate_answers


def test_answers_end_when_the_predicate_holds(generate: Any, batch: dict[str, Any]) -> None:
    tokenizer = tiny_processor().tokenizer

    def answers(until: Any) -> tuple[list[str], int]:
        forced = ForcedAnswers(tokenizer, batch["input_ids"].shape[1])
        sampling = {"do_sample": False, "logits_processor": [forced]}
        return generate(tiny_llava(), tokenizer, batch, 60, sampling, until), forced.steps

    full, many_steps = answers(None)
    shortened, few_steps = answers(verdict_stands)
    assert full == list(ANSWERS)
    assert [is_refusal(answer) for answer in shortened] == [is_refusal(answer) for answer in full] == [True, False]
    assert all(a.startswith(b) and len(b) < len(a) for a, b in zip(full, shortened, strict=True))
    assert few_steps < many_steps / 2


GENERATION_CONFIG = {
    "num_beams": 3, "do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.5, "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1, "min_new_tokens": 5, "suppress_tokens": list(range(50)), "length_penalty": 2.0,
    "num_return_sequences": 2, "min_p": 0.3, "use_cache": False, "return_dict_in_generate": True, "max_length": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [{name: value} for name, value in GENERATION_CONFIG.items()] + [GENERATION_CONFIG],
    ids=[*GENERATION_CONFIG, "all"],
)
def test_greedy_answers_ignore_the_generation_config(
    settings: dict[str, Any], generate: Any, batch: dict[str, Any]
) -> None:
    tokenizer, model = tiny_processor().tokenizer, tiny_llava()
    expected = generate_answers(model, tokenizer, batch, 8)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    assert generate(model, tokenizer, batch, 8) == expected
    assert model.generation_config.to_dict() == before, "the generation config is restored"


def test_greedy_answers_respect_stop_strings(generate: Any, batch: dict[str, Any]) -> None:
    tokenizer, model = tiny_processor().tokenizer, tiny_llava()
    (full, _) = generate_answers(model, tokenizer, batch, 8)
    model.generation_config.stop_strings = [full[1:3]]
    found = generate(model, tokenizer, batch, 8)
    assert full.startswith(found[0])
    assert len(found[0]) < len(full)
    assert start_and_stop_settings(model)["stop_strings"] == [full[1:3]]


def test_output_embeddings_get_contiguous_inputs(generate: Any, batch: dict[str, Any]) -> None:
    model, tokenizer = tiny_llava(), tiny_processor().tokenizer
    head = model.get_output_embeddings()
    contiguous = []
    forward = head.forward
    head.forward = lambda hidden: contiguous.append(hidden.is_contiguous()) or forward(hidden)
    generate(model, tokenizer, batch, 3)
    assert contiguous
    assert all(contiguous)
    assert not head._forward_pre_hooks


def test_the_generation_config_of_a_submodel_is_replaced_too() -> None:
    model = tiny_llava()
    inner: Any = model.model.language_model
    inner.generation_config = GenerationConfig(num_beams=4, eos_token_id=7)
    with without_generation_config(model):
        assert inner.generation_config.num_beams is None
        assert inner.generation_config.eos_token_id == 7
    assert inner.generation_config.num_beams == 4


def test_models_may_return_the_answer_without_the_prompt(splits: RecordSplits) -> None:
    data = PrivacyPairDataModule(splits, tiny_processor(), eval_batch_size=2)
    batch = next(iter(data.val_dataloader()))
    tokenizer = data.collate_training.tokenizer

    class AnswerOnly(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def generate(self, **inputs: Any) -> torch.Tensor:
            return torch.tensor(tokenizer(["The passport is red."] * 2)["input_ids"])

    assert generate_answers(AnswerOnly(), tokenizer, batch, 5) == ["The passport is red."] * 2
