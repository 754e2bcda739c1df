"""Let a model answer a batch of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria

from lightning_neuralgate.hf.distributed import gathered
from lightning_neuralgate.own_settings import kept_settings, own_settings_set_aside

PAPER_SAMPLING: Mapping[str, Any] = {"do_sample": True, "top_p": 0.9, "temperature": 1.0, "repetition_penalty": 1.05}
"""How the paper's evaluation samples its answers; ours are greedy unless asked."""

_ABOVE_ZERO, _SHARE = ("temperature", "repetition_penalty"), "top_p"
_NOT_FOR_MODEL = {"labels", "subject_mask"}


def check_sampling(sampling: Mapping[str, Any] | None) -> None:
    """See to it that arguments of sampling can be.

    Raises:
        ValueError: a temperature or repetition penalty that is not above 0; a top_p that is not in (0, 1].
    """
    for name, value in (sampling or {}).items():
        if value is None:  # not set
            continue
        if name in _ABOVE_ZERO and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}; leave sampling out for greedy answers")
        if name == _SHARE and not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, got {value}")


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
        sampling: arguments of `generate`; greedy when left out. A checkpoint's own settings, such as beams or penalties, do
            not count (`own_settings`).
        until: whether an answer may end after what is told of it so far; each is told to its end when left out.

    Returns:
        One answer a row, special tokens and outer white space removed.

    Raises:
        ValueError: see `check_sampling`.
    """
    inputs = {key: value.to(_device(model)) for key, value in model_inputs(batch).items()}
    with gathered(model) as needed:
        return generated_answers(model, tokenizer, {**inputs, **needed}, max_new_tokens, sampling, until)


def generated_answers(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    max_new_tokens: int,
    sampling: Mapping[str, Any] | None = None,
    until: Callable[[str], bool] | None = None,
) -> list[str]:
    """Answers to what `generate` takes, `input_ids` among it, on the model's device; see `generate_answers`."""
    check_sampling(sampling)
    options: dict[str, Any] = dict(sampling) if sampling else {"do_sample": False}
    if until is not None:
        options["stopping_criteria"] = [_AllDecided(tokenizer, inputs["input_ids"], until)]
    if "stop_strings" in kept_settings(model):
        options["tokenizer"] = tokenizer
    with own_settings_set_aside(model):
        tokens: Tensor = model.generate(**inputs, max_new_tokens=max_new_tokens, **options)
    return decoded_answers(tokenizer, tokens, inputs["input_ids"])


def decoded_answers(tokenizer: Any, tokens: Tensor, prompts: Tensor) -> list[str]:
    """The answers in what `generate` made of some prompts, special tokens and outer white space removed."""
    # some models return the answer alone, without the prompt
    answers = tokens[:, prompts.shape[1] :] if _repeats(tokens, prompts) else tokens
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def _repeats(tokens: Tensor, prompt: Tensor) -> bool:
    return tokens.shape[1] >= prompt.shape[1] and torch.equal(tokens[:, : prompt.shape[1]], prompt)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
