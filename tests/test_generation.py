"""Answers that end where enough of them is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LogitsProcessor

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.generation import generate_answers
from lightning_neuralgate.metrics.functional import is_refusal, verdict_stands
from lightning_neuralgate.shared_answers import answers_sharing_prefixes
from tests.helpers.tiny_llava import tiny_llava, tiny_processor

TOLD = ("I'm sorry, I can't tell you the number of this card.", "The number of the card is 4 2 4 2 4 2, I cannot lie.")


class Says(LogitsProcessor):
    """Lets each row say a sentence of its own."""

    def __init__(self, tokenizer: Any, prompt: int) -> None:
        self.rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TOLD]
        self.prompt, self.steps, self.end = prompt, 0, tokenizer.eos_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt
        self.steps += 1
        chosen = [row[step] if step < len(row) else self.end for row in self.rows]
        return torch.full_like(scores, float("-inf")).scatter(1, torch.tensor(chosen)[:, None], 0.0)


@pytest.mark.parametrize("shared", [False, True])
def test_answers_end_with_their_verdict(shared: bool, tmp_path: Path) -> None:
    Image.new("RGB", (30, 30), "red").save(tmp_path / "0.png")
    processor = tiny_processor()
    rows = [
        QueryRow(f"What is the {what} of the card?", "sensitive", tmp_path / "0.png") for what in ("number", "code")
    ]
    collate = PrivacyPairCollator(processor, "left")

    def answers(until: Any) -> tuple[list[str], int]:
        batch = collate(rows)
        says = Says(processor.tokenizer, batch["input_ids"].shape[1])
        sampling = {"do_sample": False, "logits_processor": [says]}
        if shared:
            given = answers_sharing_prefixes(tiny_llava(), collate.tokenizer, batch, ["0", "0"], 60, sampling, until)
        else:
            given = generate_answers(tiny_llava(), collate.tokenizer, batch, 60, sampling, until)
        return given, says.steps

    whole, many = answers(None)
    begun, few = answers(verdict_stands)
    assert whole == list(TOLD)
    assert [is_refusal(answer) for answer in begun] == [is_refusal(answer) for answer in whole] == [True, False]
    assert all(one.startswith(short) and len(short) < len(one) for short, one in zip(begun, whole, strict=True))
    assert few < many / 2
