"""The tokens of a prompt, and the gate's among them."""

from __future__ import annotations

import torch

from lightning_neuralgate.attacks.base import Prompt
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.play.asking import PLAIN, prompts_of
from lightning_neuralgate.play.pictures import draw_picture
from lightning_neuralgate.play.tokens import TokenView, token_view
from tests.helpers.tiny_llava import tiny_processor


def view(question: str, **options) -> TokenView:  # type: ignore[no-untyped-def]
    picture, processor = draw_picture("passport", 0), tiny_processor()
    (prompt,) = prompts_of(question, picture, PLAIN, processor.tokenizer)
    return token_view(prompt, picture, processor, **options)


def text(found: TokenView, kind: str) -> str:
    return "".join(token.text for token in found.tokens if getattr(token, kind)).strip()


def test_the_subject_and_its_last_token_are_marked() -> None:
    question = "The passport here: which number has the passport?"
    found = view(question)
    assert found.subject == "passport"
    assert text(found, "subject") == "passport", "the last mention only"
    assert sum(token.gated for token in found.tokens) == 1
    assert text(found, "gated")
    assert "passport".endswith(text(found, "gated"))
    assert [(token.text, token.number) for token in found.tokens if token.number > 1] == [("picture", 4)]
    assert question in "".join(token.text for token in found.tokens)
    whole = view(question, scope="subject")
    assert text(whole, "gated") == "passport"


def test_no_gate_acts_without_a_subject_or_for_a_scope_that_compares_prompts() -> None:
    for question, scope in (("What is the number?", "subject_last"), ("What is the passport number?", "divergence")):
        assert not any(token.gated for token in view(question, scope=scope).tokens)
    assert view("What is the number?").subject is None


def test_the_open_rows_of_a_gate_are_counted() -> None:
    identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
    gate = NeuralGate({"passport": {1: torch.tensor([0.0, 0.2, 0.5, 1.0])}}, identity, {"passport": 5})
    assert view("Which passport is it?", gate=gate).open_rows == {1: (2, 4)}
    assert view("Which receipt is it?", gate=gate).subject is None, "the gate does not cover receipts"
    assert view("Which receipt is it?").subject == "receipt"


def test_a_prompt_without_a_picture_has_text_tokens_only() -> None:
    picture, processor = draw_picture("passport", 0), tiny_processor()
    tokens = token_view(Prompt("A passport?", None), picture, processor).tokens
    assert all(token.number == 1 for token in tokens)
