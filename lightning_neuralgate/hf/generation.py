"""Text generation: answers to a batch of prompts, greedy or sampled, whatever a checkpoint's generation config says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from lightning_neuralgate.hf.distributed import unsharded_for_generate
from lightning_neuralgate.hf.forward import model_inputs

PAPER_SAMPLING: Mapping[str, Any] = {"do_sample": True, "top_p": 0.9, "temperature": 1.0, "repetition_penalty": 1.05}
"""Sampling settings of the paper's evaluation; this package generates greedily by default."""


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: Any,
    batch: Mapping[str, Any],
    max_new_tokens: int,
    sampling: Mapping[str, Any] | None = None,
    until: Callable[[str], bool] | None = None,
) -> list[str]:
    """Generate answers to a left-padded batch of prompts.

    Args:
        model: a Hugging Face model with `generate`.
        tokenizer: decodes the answers.
        batch: a batch of `PrivacyPairCollator` without targets.
        max_new_tokens: maximum number of tokens in an answer.
        sampling: arguments of `generate`; greedy by default. Settings of the checkpoint itself, such as beams or penalties,
            are ignored (see `without_generation_config`).
        until: a predicate on the answer so far that ends it early; by default each answer runs to its end.

    Returns:
        One answer per row, without special tokens and surrounding white space.

    Raises:
        ValueError: see `check_sampling`.
    """
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in model_inputs(batch).items()}
    with unsharded_for_generate(model) as options:
        return generate_from_inputs(model, tokenizer, {**inputs, **options}, max_new_tokens, sampling, until)


def generate_from_inputs(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    max_new_tokens: int,
    sampling: Mapping[str, Any] | None = None,
    until: Callable[[str], bool] | None = None,
) -> list[str]:
    """Generate answers from arguments of `generate`, including `input_ids`, on the model's device; see `generate_answers`."""
    check_sampling(sampling)
    options: dict[str, Any] = dict(sampling) if sampling else {"do_sample": False}
    if until is not None:
        options["stopping_criteria"] = [_StopWhen(tokenizer, inputs["input_ids"], until)]
    if "stop_strings" in start_and_stop_settings(model):
        options["tokenizer"] = tokenizer
    with without_generation_config(model), contiguous_head_inputs(model):
        tokens: Tensor = model.generate(**inputs, max_new_tokens=max_new_tokens, **options)
    return decode_answers(tokenizer, tokens, inputs["input_ids"])


def decode_answers(tokenizer: Any, tokens: Tensor, prompts: Tensor) -> list[str]:
    """Decode the answers in the output of `generate`, without special tokens and surrounding white space."""
    length = prompts.shape[1]
    # some models return the answer only, without the prompt
    answers = tokens[:, length:] if torch.equal(tokens[:, :length], prompts) else tokens
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


class _StopWhen(StoppingCriteria):
    """Stop each row as soon as a predicate on its decoded answer holds."""

    def __init__(self, tokenizer: Any, prompts: Tensor, until: Callable[[str], bool]) -> None:
        self.tokenizer, self.prompts, self.until = tokenizer, prompts, until

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        answers = decode_answers(self.tokenizer, input_ids, self.prompts)
        return torch.tensor([self.until(answer) for answer in answers], device=input_ids.device)


_START_AND_STOP = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "stop_strings")


def start_and_stop_settings(model: Any) -> dict[str, Any]:
    """Return the settings of a model's generation config that are respected: special tokens and stop strings."""
    settings: dict[str, Any] = {}
    for _, config in _generation_configs(model):
        for name in _START_AND_STOP:
            if settings.get(name) is None:
                settings[name] = getattr(config, name, None)
    return {name: value for name, value in settings.items() if value is not None}


@contextmanager
def without_generation_config(model: Any) -> Iterator[None]:
    """Reduce the generation configs of a model and its submodels to `start_and_stop_settings` while the block runs."""
    configs = list(_generation_configs(model))
    for submodel, config in configs:
        submodel.generation_config = GenerationConfig(**{name: getattr(config, name, None) for name in _START_AND_STOP})
    try:
        yield
    finally:
        for submodel, config in configs:
            submodel.generation_config = config


@contextmanager
def contiguous_head_inputs(model: Any) -> Iterator[None]:
    """Make the inputs of a model's output embeddings contiguous while the block runs.

    Models slice the last position out of the hidden states. For such a view in bfloat16 on a CPU, PyTorch copies the weights
    of the output embeddings once for every row of the batch, which takes longer than the rest of a short answer.
    """
    heads = [getattr(part, "get_output_embeddings", lambda: None)() for part in model.modules()]
    handles = [
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
        for head in {id(head): head for head in heads if isinstance(head, nn.Module)}.values()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _generation_configs(model: Any) -> Iterator[tuple[Any, GenerationConfig]]:
    # some models call generate on an inner language model with its own config; a PEFT model only forwards the attribute
    for submodel in model.modules():
        config = vars(submodel).get("generation_config")
        if isinstance(config, GenerationConfig):
            yield submodel, config


def check_sampling(sampling: Mapping[str, Any] | None) -> None:
    """Check the values of sampling arguments.

    Raises:
        ValueError: a temperature or repetition penalty that is not above 0, or a top_p that is not in (0, 1].
    """
    for name, value in (sampling or {}).items():
        if value is None:  # not set
            continue
        if name in ("temperature", "repetition_penalty") and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}; leave sampling out for greedy answers")
        if name == "top_p" and not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, got {value}")


_SEEDED_ARGUMENTS = {"do_sample", "temperature", "top_p", "repetition_penalty"}


def seeded_sampling(sampling: Mapping[str, Any], batch: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Return arguments of `generate` that sample each row of a batch with its own seed.

    Args:
        sampling: `temperature`, `top_p` and `repetition_penalty` as in `generate` (and `do_sample`, which is implied).
        batch: the left-padded batch of B prompts.
        seeds: B seeds.

    Raises:
        ValueError: an argument that is not supported.
    """
    if unknown := sampling.keys() - _SEEDED_ARGUMENTS:
        supported = ", ".join(sorted(_SEEDED_ARGUMENTS))
        raise ValueError(f"seeded sampling supports {supported}, not {', '.join(sorted(unknown))}")
    prompts = [ids[mask.bool()].cpu() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    values = (sampling.get(name, 1.0) for name in ("temperature", "top_p", "repetition_penalty"))
    processor = _GumbelNoise(prompts, seeds, *values)
    # greedy, since the argmax of the noisy scores is the sample; nothing else may be applied to them
    return {
        "do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0,
        "logits_processor": LogitsProcessorList([processor]),
    }  # fmt: skip


class _GumbelNoise(LogitsProcessor):
    """Add Gumbel noise from a random stream per row, so that the argmax is a sample (the Gumbel-max trick)."""

    def __init__(
        self, prompts: Sequence[Tensor], seeds: Sequence[int], temperature: float, top_p: float, penalty: float
    ) -> None:
        self.prompts = prompts
        self.streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = TemperatureLogitsWarper(temperature) if temperature != 1 else None
        self.top_p = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.penalty = RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1 else None
        self.prompt_length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.prompt_length = input_ids.shape[1] if self.prompt_length is None else self.prompt_length
        answers = input_ids[:, self.prompt_length :]
        scores = scores.float()
        if self.penalty is not None:
            # prompts without padding: its length depends on the batch, and its tokens would be penalized too
            rows = [
                torch.cat([prompt.to(answers.device), answer])[None]
                for prompt, answer in zip(self.prompts, answers, strict=True)
            ]
            scores = torch.cat([self.penalty(row, score[None]) for row, score in zip(rows, scores, strict=True)])
        for warp in (self.temperature, self.top_p):
            if warp is not None:
                scores = warp(input_ids, scores)
        # on the CPU, whose random streams are the same on every machine
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=stream) for stream in self.streams])
        return scores - noise.log().to(scores.device)
