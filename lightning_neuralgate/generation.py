"""Let a model answer a batch of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria

from lightning_neuralgate.sharding import gathered

PAPER_SAMPLING: Mapping[str, Any] = {"do_sample": True, "top_p": 0.9, "temperature": 1.0, "repetition_penalty": 1.05}
"""How the paper's evaluation samples its answers; ours are greedy unless asked."""

_NOT_FOR_MODEL = {"labels", "subject_mask"}


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The part of a batch that a model's forward takes."""
    return {key: value for key, value in batch.items() if isinstance(value, Tensor) and key not in _NOT_FOR_MODEL}


class _AllDecided(StoppingCriteria):
    """Ends each answer where enough of it is told."""

    def __init__(self, tokenizer: Any, prompts: Tensor, until: Callable[[str], bool]) -> None:
        self.tokenizer, self.prompts, self.until = tokenizer, prompts, until

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        told = decoded_answers(self.tokenizer, input_ids, self.prompts)
        return torch.tensor([self.until(answer) for answer in told], device=input_ids.device)


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: Any,
    batch: Mapping[str, Any],
    max_new_tokens: int,
    sampling: Mapping[str, Any] | None = None,
    until: Callable[[str], bool] | None = None,
) -> list[str]:
    """Answers to a left-padded batch of prompts.

    Args:
        model: a Hugging Face model with `generate`.
        tokenizer: decodes the answers.
        batch: what `PrivacyPairCollator` makes of rows without targets.
        max_new_tokens: upper bound of an answer's length.
        sampling: arguments of `generate`; greedy when left out.
        until: whether an answer may end after what is told of it so far; each is told to its end when left out.

    Returns:
        One answer a row, special tokens and outer white space removed.
    """
    inputs = {key: value.to(_device(model)) for key, value in model_inputs(batch).items()}
    with gathered(model) as needed:
        tokens: Tensor = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            **generation_options(sampling),
            **ending(tokenizer, inputs["input_ids"], until),
            **needed,
        )
    return decoded_answers(tokenizer, tokens, inputs["input_ids"])


def generation_options(sampling: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of `generate`: the given ones, or greedy."""
    return dict(sampling) if sampling else {"do_sample": False}


def ending(tokenizer: Any, prompts: Tensor, until: Callable[[str], bool] | None) -> dict[str, Any]:
    """Arguments of `generate` that end each answer where `until` says so."""
    return {} if until is None else {"stopping_criteria": [_AllDecided(tokenizer, prompts, until)]}


def decoded_answers(tokenizer: Any, tokens: Tensor, prompts: Tensor) -> list[str]:
    """The answers in what `generate` made of some prompts, special tokens and outer white space removed."""
    # some models return the answer alone, without the prompt
    answers = tokens[:, prompts.shape[1] :] if _repeats(tokens, prompts) else tokens
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def _repeats(tokens: Tensor, prompt: Tensor) -> bool:
    return tokens.shape[1] >= prompt.shape[1] and torch.equal(tokens[:, : prompt.shape[1]], prompt)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
