"""True answers of yes/no questions, as POPE and MME have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning_neuralgate.errors import DataFormatError

YesNo = Literal["yes", "no"]


def yes_no_truths(truths: Sequence[str], name: str) -> list[bool]:
    """Whether the true answer of each question is yes; case and surrounding whitespace do not matter.

    The official tools count any other word as yes (POPE) or stop without a word (MME).

    Args:
        truths: n words.
        name: what to call them in an error.

    Raises:
        DataFormatError: one that is neither yes nor no.

    Example:
        >>> yes_no_truths(["yes", "No"], "labels")
        [True, False]
    """
    told = []
    for place, truth in enumerate(truths):
        word = truth.strip().lower() if isinstance(truth, str) else truth
        if word not in ("yes", "no"):
            raise DataFormatError(f"`{name}` value {place} is {truth!r}; expected 'yes' or 'no'")
        told.append(word == "yes")
    return told
