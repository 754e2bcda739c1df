"""Stage 1 of `smol-minigpt`, whose image tokens cover several patches each: upper layers sort what lower ones read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_neuralgate.models.smol import PATCH_SIZE
from lightning_neuralgate.models.smol_minigpt import READING_LAYERS
from recipes.smol_training.pool import (
    CHARACTERS,
    ORDINALS,
    PLACES,
    TowerPictures,
    World,
    places_of,
    region_facts,
    sides_of,
)
from recipes.smol_training.tower import TowerModule, nearest
from recipes.smol_training.words import PLACE_WEIGHT

LINES, LENGTH = 3, 7
"""Lines of a document, and characters of a value, that have an image token each."""
THING_TOKENS = 3
"""Image tokens of a thing in a scene."""


def token_labels(world: World, characters: np.ndarray, regions: np.ndarray, tokens: int) -> dict[str, Tensor]:
    """What each image token encodes.

    The first `LENGTH` tokens per line are the characters of a value in reading order, if the picture has any: a document has
    `LINES` lines, a sign one. The next tokens are the things in a scene, from left to right: `THING_TOKENS` words each,
    colour, name and side. All others are the words of the whole picture.

    Args:
        world: the classes.
        characters: (MAX_CHARACTERS, 5), as in `Pool`.
        regions: (MAX_REGIONS, 10), as in `Pool`.
        tokens: number of image tokens.

    Returns:
        `chars`, `fields`, `places`, `words`, `extras`, `placed` and `hidden` (T); `placed` is 1 for the words of things,
        `hidden` is 1 where a shift moved the content out of the picture.
    """
    chars, fields, places, extras, placed, hidden = (np.zeros(tokens, np.int64) for _ in range(6))
    whole = region_facts(world, regions[0])
    words = np.array([world.words.index(whole[token % len(whole)]) for token in range(tokens)])
    things = [row for row in regions[1:] if row[4] > 0]
    written = characters[characters[:, 0] > 0]
    documents = range(1, 1 + len(world.specs))
    owner = next((int(row[4]) for row in (regions[0], *things) if row[4] in documents), 0)
    lines = 0 if not len(written) else LINES if owner else 1
    for char, field, place, x, y in written:
        line = world.line(owner, int(field)) if owner else 0
        token = LENGTH * line + int(place) - 1
        if place > LENGTH or token >= tokens:
            continue
        if 0 <= x < 1 and 0 <= y < 1:
            chars[token], fields[token], places[token] = char, field, min(int(place), len(ORDINALS))
        else:
            hidden[token] = 1
    start = LENGTH * lines
    for row in sorted(things, key=lambda row: row[0] + row[2]):
        facts = region_facts(world, row)
        side = " ".join(dict.fromkeys(sides_of((row[0] + row[2]) / 2, (row[1] + row[3]) / 2)))
        if start + THING_TOKENS > tokens:
            break
        words[start : start + THING_TOKENS] = [
            world.words.index(word) for word in (facts[0], facts[min(1, len(facts) - 1)], side)
        ]
        added = (PLACES[len(ORDINALS) + int(row[8])], *places_of(row))
        extras[start : start + THING_TOKENS] = [PLACES.index(place) for place in added]
        placed[start : start + THING_TOKENS] = 1
        start += THING_TOKENS
    arrays = {
        "chars": chars, "fields": fields, "places": places, "words": words, "extras": extras, "placed": placed,
        "hidden": hidden,
    }  # fmt: skip
    return {f"token_{name}": torch.from_numpy(array) for name, array in arrays.items()}


def ordered_labels(world: World, characters: np.ndarray, regions: np.ndarray, tokens: int) -> dict[str, Tensor]:
    """`token_labels` for `WordTargets`, which takes several characters per token."""
    named = token_labels(world, characters, regions, tokens)
    labels = {name.removeprefix("token_"): value for name, value in named.items()}
    return {**labels, "chars": labels["chars"].unsqueeze(-1)}


class OrderedPictures(TowerPictures):
    """`TowerPictures` with labels of the image tokens, too."""

    def __init__(self, *args: Any, tokens: int) -> None:
        super().__init__(*args)
        self.tokens = tokens

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = super().__getitem__(index)
        return item | token_labels(self.world, item["characters"].numpy(), item["regions"].numpy(), self.tokens)


class OrderedTowerModule(TowerModule):
    """Train tower and projector of a MiniGPT-4: the lower layers read patches, the upper ones sort; see `token_labels`."""

    def __init__(self, model: Any, tokenizer: Any, world: World, steps: int, peak: float = 0.5) -> None:
        super().__init__(model, tokenizer, world, steps, peak)
        self.tokens = model.config.image_seq_length
        width = self.projector.in_features
        self.token_head = nn.Linear(width, len(CHARACTERS) + 1)
        self.token_word_head = nn.Linear(width, len(world.words))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        outputs = self.tower(batch["pixels"], output_hidden_states=True)
        labels = {name.removeprefix("token_"): value for name, value in batch.items() if name.startswith("token_")}
        gathered = outputs.last_hidden_state[:, 1:].unflatten(1, (self.tokens, -1)).flatten(2)
        seen = (1 - labels["hidden"]).float()
        scores = self.token_head(gathered).float()
        per_token = F.cross_entropy(scores.flatten(0, 1), labels["chars"].flatten(), reduction="none")
        filled = labels["chars"] > 0
        weights = torch.where(filled, 1.0, 0.1) * seen
        token_loss = (per_token * weights.flatten()).sum() / weights.sum()
        placed = labels["placed"] > 0
        focus = (torch.where(placed, 1.0, 0.1) * seen * ~filled).flatten()
        mapped = self.projector(gathered).float() / self.targets.scale
        table, added = self.targets.words, PLACE_WEIGHT * self.targets.places
        for name, guesses, key in (
            ("token_words", self.token_word_head(gathered).float(), "words"),
            ("nearest", nearest(mapped - added[labels["extras"]], table), "words"),
            ("nearest_places", nearest(mapped - table[labels["words"]], added), "extras"),
        ):
            per_word = F.cross_entropy(guesses.flatten(0, 1), labels[key].flatten(), reduction="none")
            token_loss = token_loss + (per_word * focus).sum() / focus.sum()
            self.log(name, (guesses.argmax(-1) == labels[key])[placed].float().mean(), prog_bar=True)
        exact = {**labels, "chars": labels["chars"].unsqueeze(-1)}
        token_loss = token_loss + self.letter_loss(mapped, exact)
        squares = (mapped - self.targets(exact)).square().mean(-1)
        embedding_loss = (squares * seen).sum() / seen.sum()
        token_accuracy = (scores.argmax(-1) == labels["chars"])[filled].float().mean()
        self.log_dict({"tokens": token_accuracy, "embedding_loss": embedding_loss}, prog_bar=True)
        reading = self.reading_loss(outputs.hidden_states[READING_LAYERS][:, 1:], batch)
        return reading + token_loss + embedding_loss


def start_from_smol_llava(model: Any, pixels: Tensor, shipped: dict[str, Tensor]) -> None:
    """Initialize the lower tower layers of a `smol-minigpt` from a `smol-llava`, and the upper ones as identity.

    CLIP's tower has a LayerNorm before its layers, BLIP-2's has none: it is folded into the patch and position embeddings,
    using the mean standard deviation of patch embeddings.

    Args:
        model: the newly assembled model, changed in place.
        pixels: (N, 3, size, size), pictures to measure the standard deviation on.
        shipped: the tensors of `smol-llava`.
    """
    named = {name.removeprefix("model."): value.float() for name, value in shipped.items()}
    clip = {name.removeprefix("vision_tower."): value for name, value in named.items()}
    tower = model.model.vision_tower
    state = tower.state_dict()
    patch = clip["embeddings.patch_embedding.weight"]
    positions = clip["embeddings.position_embedding.weight"]
    side = round((len(positions) - 1) ** 0.5)
    square = positions[1:].T.unflatten(1, (side, side))[None]
    grid = F.interpolate(square, (tower.config.image_size // PATCH_SIZE,) * 2, mode="bicubic")
    positions = torch.cat([positions[:1] + clip["embeddings.class_embedding"], grid[0].flatten(1).T])
    gain, bias = clip["pre_layrnorm.weight"], clip["pre_layrnorm.bias"]
    patches = F.conv2d(pixels, patch, stride=PATCH_SIZE).flatten(2).transpose(1, 2) + positions[1:]
    spread = patches.std(-1).mean(0)
    spread = torch.cat([positions[:1].std(-1), spread])[:, None]
    # all patches share one convolution, and so one factor
    mean_spread = spread[1:].mean()
    state["embeddings.patch_embedding.weight"] = (patch - patch.mean(0)) * gain[:, None, None, None] / mean_spread
    state["embeddings.patch_embedding.bias"] = torch.zeros(len(patch))
    state["embeddings.class_embedding"] = torch.zeros(1, 1, len(patch))
    scale = torch.cat([spread[:1], mean_spread.expand(len(spread) - 1, 1)])
    centred = positions - positions.mean(-1, keepdim=True)
    state["embeddings.position_embedding"] = (centred / scale * gain + bias)[None]
    for layer in range(READING_LAYERS):
        prefix = f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            parts = [clip[f"{prefix}self_attn.{name}_proj.{kind}"] for name in ("q", "k", "v")]
            state[f"{prefix}self_attn.qkv.{kind}"] = torch.cat(parts)
            state[f"{prefix}self_attn.projection.{kind}"] = clip[f"{prefix}self_attn.out_proj.{kind}"]
            for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{prefix}{name}.{kind}"] = clip[f"{prefix}{name}.{kind}"]
    for layer in range(READING_LAYERS, tower.config.num_hidden_layers):
        for name in ("self_attn.projection", "mlp.fc2"):
            key = f"encoder.layers.{layer}.{name}.weight"
            state[key] = torch.zeros_like(state[key])
    tower.load_state_dict(state)
