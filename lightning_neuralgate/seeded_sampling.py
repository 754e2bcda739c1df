"""Sampled answers that depend on a seed of their own, and not on what else stands in the batch.

`generate` draws the tokens of a batch from one stream of random numbers, so that an answer changes with its neighbours. Here
every row has its own stream, and draws by the Gumbel trick: the largest of log p + g, with g = -log(-log u), is a draw from
p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

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
