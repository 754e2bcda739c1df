"""The mark `###` that begins each turn of the Q-Former variant: its model writes it behind an answer, which ends there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

TURN_MARK = "###"


def spellings(tokenizer: Any, mark: str = TURN_MARK) -> list[list[int]]:
    """The token ids that a mark is written with: behind a word, behind a space, and at the start of a line."""
    found = []
    for before in ("a", "a ", "a\n"):
        ids = tokenizer(before + mark, add_special_tokens=False)["input_ids"]
        begins = next(begin for begin in reversed(range(len(ids))) if mark in tokenizer.decode(ids[begin:]))
        found.append(ids[begins:])
    return [list(ids) for ids in dict.fromkeys(map(tuple, found))]


class EndsInMark(StoppingCriteria):
    """Ends an answer whose last tokens are one of a mark's spellings."""

    def __init__(self, marks: Sequence[Sequence[int]]) -> None:
        self.marks = marks

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ends = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for mark in self.marks:
            if input_ids.shape[1] >= len(mark):
                ends |= (input_ids[:, -len(mark) :] == input_ids.new_tensor(mark)).all(1)
        return ends


def cut_at_mark(tokens: Tensor, prompt: int, marks: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Answers up to their first mark, padding in the place of the rest.

    Args:
        tokens: (B, T), what `generate` made.
        prompt: how many first columns are prompts, whose marks stay.
        marks: spellings of the mark.
        pad: id of the padding token.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device)
    begins = torch.full((len(tokens), 1), tokens.shape[1], device=tokens.device)
    for mark in marks:
        if tokens.shape[1] - prompt >= len(mark):
            hits = (tokens[:, prompt:].unfold(1, len(mark), 1) == tokens.new_tensor(mark)).all(2)
            first = hits.long().argmax(1, keepdim=True) + prompt
            begins = torch.where(hits.any(1, keepdim=True), begins.minimum(first), begins)
    return tokens.masked_fill(places >= begins, pad)
