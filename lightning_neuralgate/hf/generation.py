"""Let a model answer a batch of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from lightning_neuralgate.hf.distributed import gathered
from lightning_neuralgate.hf.forward import model_inputs

_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "stop_strings")


def kept_settings(model: Any) -> dict[str, Any]:
    """What counts of a model's own settings: the tokens and texts with which an answer begins and ends."""
    kept: dict[str, Any] = {}
    for _, own in _owners(model):
        for name in _KEPT:
            if kept.get(name) is None:
                kept[name] = getattr(own, name, None)
    return {name: value for name, value in kept.items() if value is not None}


@contextmanager
def without_generation_config(model: Any) -> Iterator[None]:
    """While the block runs, a model and the models inside of it have no settings of generation but `kept_settings`."""
    owners = list(_owners(model))
    for part, own in owners:
        part.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in _KEPT})
    try:
        yield
    finally:
        for part, own in owners:
            part.generation_config = own


def _owners(model: Any) -> Iterator[tuple[Any, GenerationConfig]]:
    # some models call generate on a language model inside of them, which has settings of its own; a PEFT model only passes on
    for part in model.modules():
        own = vars(part).get("generation_config")
        if isinstance(own, GenerationConfig):
            yield part, own


PAPER_SAMPLING: Mapping[str, Any] = {"do_sample": True, "top_p": 0.9, "temperature": 1.0, "repetition_penalty": 1.05}
"""How the paper's evaluation samples its answers; ours are greedy unless asked."""

_ABOVE_ZERO, _SHARE = ("temperature", "repetition_penalty"), "top_p"


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
    with without_generation_config(model):
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


_KNOWN = {"do_sample", "temperature", "top_p", "repetition_penalty"}


def seeded_sampling(sampling: Mapping[str, Any], batch: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Arguments of `generate` that sample each row of a batch from its own seed.

    Args:
        sampling: `temperature`, `top_p` and `repetition_penalty`, as `generate` knows them (and `do_sample`, which is true).
        batch: the left-padded batch of B prompts.
        seeds: B seeds.

    Raises:
        ValueError: an argument that is not known here.
    """
    if unknown := sampling.keys() - _KNOWN:
        raise ValueError(f"seeded sampling knows {', '.join(sorted(_KNOWN))}, not {', '.join(sorted(unknown))}")
    prompts = [ids[mask.bool()].cpu() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    processor = _OwnDraws(
        prompts,
        seeds,
        sampling.get("temperature", 1.0),
        sampling.get("top_p", 1.0),
        sampling.get("repetition_penalty", 1.0),
    )
    # what is drawn is the largest value, so this counts as greedy; a checkpoint's own settings must not come on top
    return {
        "do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0,
        "logits_processor": LogitsProcessorList([processor]),
    }  # fmt: skip


class _OwnDraws(LogitsProcessor):
    def __init__(
        self, prompts: Sequence[Tensor], seeds: Sequence[int], temperature: float, top_p: float, penalty: float
    ) -> None:
        self.prompts = prompts
        self.streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = TemperatureLogitsWarper(temperature) if temperature != 1 else None
        self.top_p = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.penalty = RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1 else None
        self.begin: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.begin = input_ids.shape[1] if self.begin is None else self.begin
        told = input_ids[:, self.begin :]
        scores = scores.float()
        if self.penalty is not None:
            # the prompt as it is: padding, which depends on the neighbours, would be penalized too
            rows = [
                torch.cat([prompt.to(told.device), own])[None] for prompt, own in zip(self.prompts, told, strict=True)
            ]
            scores = torch.cat([self.penalty(row, score[None]) for row, score in zip(rows, scores, strict=True)])
        for warp in (self.temperature, self.top_p):
            if warp is not None:
                scores = warp(input_ids, scores)
        # on the CPU, whose streams are the same everywhere
        drawn = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=stream) for stream in self.streams])
        return scores - drawn.log().to(scores.device)
