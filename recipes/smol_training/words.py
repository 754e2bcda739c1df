"""The words that image tokens stand for: the projector's targets, from which a language model can learn without a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recipes.smol_training.pool import (
    CHARACTERS,
    NOTHING,
    PLACES,
    World,
    character_labels,
    word_labels,
)

PLACE_WEIGHT = 0.7
"""Weight of what is added to a word or a character, see `PLACES`."""


class WordTargets(nn.Module):
    """Embeddings of what image tokens stand for, in units of the word embeddings' standard deviation `scale`.

    Args:
        embeddings: the language model's word embeddings, (V, d).
        tokenizer: its tokenizer.
        world: the classes.
    """

    def __init__(self, embeddings: Tensor, tokenizer: Any, world: World) -> None:
        super().__init__()
        self.scale = float(embeddings.std())

        def table(names: Sequence[str], prefix: str = " ") -> Tensor:
            """Mean token embedding of each name; zeros for ""."""
            ids = [
                tokenizer(f"{prefix}{name}", add_special_tokens=False)["input_ids"] if name else [] for name in names
            ]
            rows = [embeddings[row].mean(0) if row else torch.zeros(embeddings.shape[1]) for row in ids]
            return torch.stack(rows) / self.scale

        words = torch.cat([table([NOTHING], prefix=""), table(world.words[1:])])
        self.register_buffer("chars", table(["", *CHARACTERS], prefix=""), persistent=False)
        self.register_buffer("fields", table(world.phrases), persistent=False)
        self.register_buffer("places", table(PLACES), persistent=False)
        self.register_buffer("words", words, persistent=False)

    def forward(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Embeddings (..., d) from labels `chars` (..., SLOTS), `fields`, `places`, `words` and `extras` (...).

        A token with a character stands for the sum of character, field name and place, any other for its word and what is
        added to it.
        """
        chars = labels["chars"]
        present = (chars > 0).unsqueeze(-1)
        letters = (self.chars[chars] * present).sum(-2) / present.sum(-2).clamp(min=1).sqrt()
        letters = letters + self.fields[labels["fields"]] + PLACE_WEIGHT * self.places[labels["places"]]
        words = self.words[labels["words"]] + PLACE_WEIGHT * self.places[labels["extras"]]
        return torch.where(present.any(-2), letters, words)


def patch_labels(world: World, characters: np.ndarray, regions: np.ndarray, grid: int) -> dict[str, Tensor]:
    """Labels of each patch (grid * grid) for `WordTargets`."""
    return {**character_labels(characters, grid), **word_labels(world, regions, grid)}
