"""Train the tower, projector and LoRA adapter of an embedded model, `smol-llava` or `smol-minigpt`.

    python recipes/train_smol_llava.py --out runs/smol-llava
    python recipes/train_smol_llava.py --model smol-minigpt --out runs/smol-minigpt

Two stages, each checkpointed about once a minute; start the same command again and it goes on where it was.
1. tower: rendered pictures only, drawn once and shown shifted. A dense loss says which character lies under each patch,
   and heads on the mean patch say subject, colour, shape and layout; the projector learns to land on the word embeddings
   of what lies there.
2. align: tower frozen; projector and LoRA (q, v, o, up, down) learn whole answers through the language model, on newly
   drawn pictures.

`smol-minigpt` starts from what the shipped `smol-llava` knows. Its image tokens stand for four patches, and a character is
wider than one; so its tower has two more layers, which learn to bring the characters of each value into reading order: one
image token is one character, and what is left of them tells the picture's facts.

Afterwards the held-out accuracy is printed and the weights are written to `OUT/`; copy them to
`lightning_neuralgate/models/assets/` to ship them. The accuracy of the shipped weights:

    python recipes/train_smol_llava.py --eval-shipped
    python recipes/train_smol_llava.py --model smol-minigpt --eval-shipped
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.rendering.draw import ORDINARY_COLOURS, SHAPES, Rendering, ordinary_picture, render
from lightning_neuralgate.data.rendering.questions import (
    EDIT_TEMPLATES,
    ORDINARY_QUESTIONS,
    PICTURE_QUESTIONS,
    SHAPE_COLOUR_QUESTIONS,
    SHAPE_QUESTIONS,
    TEST_TEMPLATES,
    TRAINING_TEMPLATES,
)
from lightning_neuralgate.data.rendering.spec import SubjectSpec, load_subject_spec, shipped_subjects
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.metrics.functional import leaks, says_value
from lightning_neuralgate.models.smol import (
    IMAGE_SIZE,
    PATCH_SIZE,
    SMOL_LLAVA,
    WEIGHTS,
    EmbeddedModel,
    add_lora,
    trained_state,
)
from lightning_neuralgate.models.smol_minigpt import READING_LAYERS, SMOL_MINIGPT
from lightning_neuralgate.runtime.files import atomic_write

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-./"
SLOTS = 2
"""Characters that a patch can hold, side by side."""
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
GRID = IMAGE_SIZE // PATCH_SIZE
MOST_CHARACTERS = 40
HELD_OUT = 900_000_000
"""Seeds from here on are never trained on; the demo's pictures have other seeds again."""


class World:
    """All that a picture can show, with class indices."""

    def __init__(self) -> None:
        self.specs: list[SubjectSpec] = [load_subject_spec(name) for name in shipped_subjects()]
        self.subjects = [spec.subject for spec in self.specs] + ["shape"]
        colours = {colour for spec in self.specs for colour in spec.fields[spec.colour_field].choices or {}}
        self.colours = sorted(colours | set(ORDINARY_COLOURS))
        self.layouts = sorted({name for spec in self.specs for name in spec.layouts})
        self.shapes = list(SHAPES)
        self.phrases = sorted({phrase for spec in self.specs for phrase in spec.phrases(sensitive=True).values()})
        self.lines = torch.zeros(len(self.subjects), len(self.phrases) + 1, dtype=torch.long)
        """Which of a subject's sensitive fields a phrase is, counted from 0; by subject and phrase, as in a `CardPool`."""
        for row, spec in enumerate(self.specs):
            for line, phrase in enumerate(spec.phrases(sensitive=True).values()):
                self.lines[row, 1 + self.phrases.index(phrase)] = line

    def characters(self, rendering: Rendering, spec: SubjectSpec | None) -> list[tuple[float, ...]]:
        """Character, field, place, x and y of each legible character of a value, as `CardPool` keeps them."""
        return [
            (
                1 + CHARACTERS.index(drawn.char),
                1 + self.phrases.index(spec.fields[drawn.field].phrase),
                1 + drawn.index,
                drawn.x,
                drawn.y,
            )
            for drawn in rendering.characters
            if spec is not None and drawn.char in CHARACTERS
        ][:MOST_CHARACTERS]

    def facts(self, spec: SubjectSpec, values: dict[str, str]) -> dict[str, str]:
        shape = next(v for name, v in values.items() if spec.fields[name].choices and v in SHAPES)
        layout = values[spec.layout_field] if spec.layout_field else self.layouts[0]
        return {"subject": spec.subject, "colour": values[spec.colour_field], "layout": layout, "shape": shape}

    def classes(self, facts: dict[str, str]) -> Tensor:
        lists = {"subject": self.subjects, "colour": self.colours, "layout": self.layouts, "shape": self.shapes}
        return torch.tensor([names.index(facts[key]) if key in facts else -100 for key, names in lists.items()])


class Cards(Dataset):
    """Freshly rendered cards, an endless supply addressed by seed."""

    def __init__(self, world: World, processor: Any, first: int, count: int) -> None:
        self.world, self.processor, self.first, self.count = world, processor, first, count

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int) -> tuple[Rendering, dict[str, str], SubjectSpec | None]:
        seed = self.first + index
        choice = random.Random(f"card/{seed}").randrange(10 * len(self.world.specs))
        if choice < len(self.world.specs):
            image, colour, shape = ordinary_picture(seed)
            return Rendering(image, {}, ()), {"subject": "shape", "colour": colour, "shape": shape}, None
        spec = self.world.specs[choice % len(self.world.specs)]
        drawn = render(spec, seed)
        return drawn, self.world.facts(spec, drawn.values), spec

    def pixels(self, rendering: Rendering) -> Tensor:
        return self.processor.image_processor(rendering.image, return_tensors="pt")["pixel_values"][0]


class CardPool(NamedTuple):
    """Cards drawn once, in memory: what the tower learns from."""

    pixels: np.ndarray
    """(N, image_size, image_size, 3) bytes."""
    characters: np.ndarray
    """(N, MOST_CHARACTERS, 5): character, field and place (indices from 1; 0 is none), centre x and y as shares."""
    classes: np.ndarray
    """(N, 4): subject, colour, layout, shape; -100 is none."""


def draw_pool(world: World, file: Path, first: int, count: int, workers: int, image_size: int = IMAGE_SIZE) -> CardPool:
    """The cards from a seed on, drawn by several processes; kept in a file."""
    if not file.is_file():
        spans = [(world, first + start, min(200, count - start), image_size) for start in range(0, count, 200)]
        with ProcessPoolExecutor(workers) as pool:
            parts = list(tqdm(pool.map(_draw_part, spans), total=len(spans), desc="draw cards", unit="x 200"))
        with atomic_write(file) as draft, draft.open("wb") as stream:
            np.savez(
                stream, **{key: np.concatenate([getattr(part, key) for part in parts]) for key in CardPool._fields}
            )
    with np.load(file) as kept:
        return CardPool(**{key: kept[key] for key in CardPool._fields})


def _draw_part(span: tuple[World, int, int, int]) -> CardPool:
    world, first, count, image_size = span
    cards = Cards(world, None, first, count)
    pixels, characters, classes = [], np.zeros((count, MOST_CHARACTERS, 5), np.float32), []
    for index in range(count):
        rendering, facts, spec = cards.draw(index)
        # as the processor does it
        small = rendering.image.resize((image_size, image_size), Image.Resampling.BICUBIC)
        pixels.append(np.asarray(small))
        for place, row in enumerate(world.characters(rendering, spec)):
            characters[index, place] = row
        classes.append(world.classes(facts).numpy())
    return CardPool(np.stack(pixels), characters, np.stack(classes))


class TowerCards(Dataset):
    """Cards of a pool in random order, each time shifted differently, with their dense labels."""

    SHIFT = round(0.045 * IMAGE_SIZE)

    def __init__(self, pool: CardPool, processor: Any, seed: int, first: int, count: int, grid: int = GRID) -> None:
        self.pool, self.seed, self.first, self.count, self.grid = pool, seed, first, count, grid
        self.mean, self.std = (
            torch.tensor(values)[:, None, None]
            for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = random.Random(f"{self.seed}/shift/{self.first + index}")
        card = rng.randrange(len(self.pool.pixels))
        x, y = (rng.randint(-self.SHIFT, self.SHIFT) for _ in range(2))
        # what leaves the picture on one side comes in on the other
        pixels = torch.from_numpy(np.roll(self.pool.pixels[card], (y, x), (0, 1))).permute(2, 0, 1) / 255
        characters = self.pool.characters[card].copy()
        characters[:, 3:] += np.array((x, y)) / pixels.shape[-1]
        return {
            "pixels": (pixels - self.mean) / self.std,
            "classes": torch.from_numpy(self.pool.classes[card]),
            "characters": torch.from_numpy(characters),
            **dense_labels(characters, self.grid),
        }


def dense_labels(characters: np.ndarray, grid: int = GRID) -> dict[str, Tensor]:
    """What lies under each patch: `chars` (grid * grid, SLOTS), `fields` and `places` (grid * grid); 0 is nothing.

    A character belongs to the patch that its middle lies in. `fields` says whose value it is part of, `places` the
    index within that value.
    """
    chars = torch.zeros(grid, grid, SLOTS, dtype=torch.long)
    fields, places = (torch.zeros(grid, grid, dtype=torch.long) for _ in range(2))
    for char, field, place, x, y in characters:
        row, column = math.floor(y * grid), math.floor(x * grid)
        if char == 0 or not (0 <= row < grid and 0 <= column < grid):
            continue
        chars[row, column, int(x * grid * SLOTS) % SLOTS] = int(char)
        fields[row, column] = int(field)
        if places[row, column] == 0:
            places[row, column] = int(place)
    return {"chars": chars.flatten(0, 1), "fields": fields.flatten(), "places": places.flatten()}


class TowerModule(L.LightningModule):
    """Stage 1. Trains `vision_tower` and `multi_modal_projector` of a LLaVA against what the renderer knows."""

    def __init__(self, model: Any, tokenizer: Any, world: World, steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        width = model.config.vision_config.hidden_size
        self.world = world
        self.char_head = nn.Linear(width, SLOTS * (len(CHARACTERS) + 1))
        self.field_head = nn.Linear(width, len(world.phrases) + 1)
        self.place_head = nn.Linear(width, len(ORDINALS) + 1)
        facts = {
            "subject": world.subjects, "colour": world.colours, "layout": world.layouts, "shape": world.shapes
        }  # fmt: skip
        self.class_heads = nn.ModuleList(nn.Linear(width, len(names)) for names in facts.values())
        words = model.model.language_model.embed_tokens.weight.detach()

        def table(names: Sequence[str], blank: bool = False) -> Tensor:
            ids = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
            rows = [torch.zeros(words.shape[1])] * blank + [words[row].mean(0) for row in ids]
            return torch.stack(rows) / words.std()

        self.register_buffer("char_words", table(CHARACTERS, blank=True), persistent=False)
        self.register_buffer("field_words", table([f" {name}" for name in world.phrases], blank=True), persistent=False)
        self.register_buffer("place_words", table([f" {name}" for name in ORDINALS], blank=True), persistent=False)
        for name, names in facts.items():
            self.register_buffer(f"{name}_words", table([f" {n}" for n in names]), persistent=False)
        self.scale = float(words.std())
        self.steps = steps

    def word_targets(self, batch: dict[str, Tensor]) -> Tensor:
        """Where a patch should land, in units of the word embeddings' standard deviation. (B, P, d).

        On a character: its own embedding, its field's name and its place; elsewhere: the picture's facts.
        """
        chars, classes = batch["chars"], batch["classes"]
        present = (chars > 0).unsqueeze(-1)
        letters = (self.char_words[chars] * present).sum(2) / present.sum(2).clamp(min=1).sqrt()
        letters = letters + self.field_words[batch["fields"]] + 0.7 * self.place_words[batch["places"]]
        tables = [self.subject_words, self.colour_words, self.layout_words, self.shape_words]
        known = (classes >= 0).float()
        facts = sum(t[c.clamp(min=0)] * k[:, None] for t, c, k in zip(tables, classes.T, known.T, strict=True))
        return torch.where(present.any(2), letters, facts[:, None])

    def training_step(self, batch: dict[str, Tensor], index: int) -> None:
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer, schedule in zip(optimizers, self.lr_schedulers(), strict=True):
            self.clip_gradients(optimizer, 1.0, "norm")
            optimizer.step()
            schedule.step()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.tower(batch["pixels"]).last_hidden_state[:, 1:]
        word_loss = F.mse_loss(self.projector(hidden).float() / self.scale, self.word_targets(batch))
        self.log("word_loss", word_loss, prog_bar=True)
        return self.reading_loss(hidden, batch) + 0.5 * word_loss

    def reading_loss(self, hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """How well patches' features (B, P, width) say what lies under them, and what the picture shows."""
        logits = self.char_head(hidden).unflatten(-1, (SLOTS, -1)).float()
        truth = batch["chars"]
        per_slot = F.cross_entropy(logits.flatten(0, 2), truth.flatten(), reduction="none")
        filled = truth.flatten() > 0
        weights = torch.where(filled, 1.0, 0.1)
        losses = [(per_slot * weights).sum() / weights.sum()]
        under = batch["fields"] > 0
        for head, key in ((self.field_head, "fields"), (self.place_head, "places")):
            losses.append(0.5 * F.cross_entropy(head(hidden[under]).float(), batch[key][under]))
        pooled = hidden.mean(1)
        right = []
        for head, labels in zip(self.class_heads, batch["classes"].T, strict=True):
            scores = head(pooled).float()
            losses.append(0.4 * F.cross_entropy(scores, labels, ignore_index=-100))
            known = labels >= 0
            right.append((scores.argmax(-1) == labels)[known].float().mean())
        hits = logits.argmax(-1) == truth
        chars_right = hits.flatten()[filled].float().mean()
        digits = (truth > 0) & (truth <= 10)
        self.log_dict({"chars": chars_right, "digits": hits[digits].float().mean()}, prog_bar=True)
        self.log_dict(dict(zip(("subject", "colour", "layout", "shape"), right, strict=True)), prog_bar=True)
        return torch.stack(losses).sum()

    def configure_optimizers(self) -> Any:
        """Muon for the tower's matrices, AdamW for all else: reads what AdamW alone does after a third of the steps."""
        matrices = [p for name, p in self.tower.named_parameters() if p.ndim == 2 and "embedding" not in name]
        taken = {id(p) for p in matrices}
        others = [p for p in self.parameters() if id(p) not in taken]
        muon = torch.optim.Muon(matrices, lr=8e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(others, lr=2e-3, weight_decay=0.01)
        return [muon, adamw], [torch.optim.lr_scheduler.LambdaLR(one, self.rate) for one in (muon, adamw)]

    def rate(self, step: int) -> float:
        """The learning rate's share of its peak: up over 50 steps, then evenly down."""
        return min((step + 1) / 50, max(0.01, 1 - step / self.steps))


class OrderedTowerModule(TowerModule):
    """Stage 1 for image tokens that each stand for several patches.

    The lower layers read; those above bring what was read into order: image token `PLACES * line + place` is a character
    of the value in that line, and those that no character needs tell the picture's facts.
    """

    LINES, PLACES = 3, 7
    PEAK = 0.5
    """Of the learning rate: the tower starts from one that reads."""

    def __init__(self, model: Any, tokenizer: Any, world: World, steps: int) -> None:
        super().__init__(model, tokenizer, world, steps)
        self.tokens = model.config.image_seq_length
        self.token_head = nn.Linear(self.projector.in_features, len(CHARACTERS) + 1)

    def token_labels(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What each image token has to say: `chars`, `fields`, `places`, each (B, tokens); 0 is nothing.

        `hidden` (B, tokens): the character has left the picture.
        """
        rows = batch["characters"]
        char, field, place = rows[..., :3].long().unbind(-1)
        line = self.world.lines.to(rows.device)[batch["classes"][:, :1], field]
        token = (self.PLACES * line + place - 1).clamp(min=0)
        inside = ((rows[..., 3:] >= 0) & (rows[..., 3:] < 1)).all(-1)
        blank = torch.zeros(len(rows), self.tokens + 1, dtype=torch.long, device=rows.device)
        token = torch.where(char > 0, token, self.tokens)  # what is none goes into a column of its own
        labels = {
            "chars": char * inside,
            "fields": field * inside,
            "places": place * inside,
            "hidden": (~inside).long(),
        }
        return {name: blank.scatter(1, token, value)[:, :-1] for name, value in labels.items()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        outputs = self.tower(batch["pixels"], output_hidden_states=True)
        labels = self.token_labels(batch)
        gathered = outputs.last_hidden_state[:, 1:].unflatten(1, (self.tokens, -1)).flatten(2)
        scores = self.token_head(gathered).float()
        per_token = F.cross_entropy(scores.flatten(0, 1), labels["chars"].flatten(), reduction="none")
        filled = labels["chars"] > 0
        weights = torch.where(filled, 1.0, 0.1) * (1 - labels["hidden"])
        token_loss = (per_token * weights.flatten()).sum() / weights.sum()
        targets = self.word_targets({**labels, "chars": labels["chars"].unsqueeze(-1), "classes": batch["classes"]})
        off = F.mse_loss(self.projector(gathered).float() / self.scale, targets, reduction="none").mean(-1)
        word_loss = (off * (1 - labels["hidden"])).mean()
        right = (scores.argmax(-1) == labels["chars"])[filled].float().mean()
        self.log_dict({"tokens": right, "token_loss": token_loss, "word_loss": word_loss}, prog_bar=True)
        reading = self.reading_loss(outputs.hidden_states[READING_LAYERS][:, 1:], batch)
        return reading + token_loss + 0.5 * word_loss

    def rate(self, step: int) -> float:
        return self.PEAK * super().rate(step)


def start_from_smol_llava(model: Any, pixels: Tensor) -> None:
    """Put the shipped `smol-llava`'s tower into the lower layers of a `smol-minigpt`; the upper ones begin as nothing.

    CLIP's tower has a norm below its layers, which BLIP-2's kind has not: it goes into patch and position embeddings, with
    the spread that some pictures' patches have in the mean.

    Args:
        model: the freshly assembled model.
        pixels: (N, 3, size, size), some pictures.
    """
    known = {name.removeprefix("model."): value.float() for name, value in load_file(WEIGHTS).items()}
    clip = {name.removeprefix("vision_tower."): value for name, value in known.items()}
    tower = model.model.vision_tower
    own = tower.state_dict()
    patch = clip["embeddings.patch_embedding.weight"]
    places = clip["embeddings.position_embedding.weight"]
    grid = F.interpolate(
        places[1:].T.unflatten(1, (GRID, GRID))[None], (tower.config.image_size // PATCH_SIZE,) * 2, mode="bicubic"
    )
    places = torch.cat([places[:1] + clip["embeddings.class_embedding"], grid[0].flatten(1).T])
    gain, bias = clip["pre_layrnorm.weight"], clip["pre_layrnorm.bias"]
    patches = F.conv2d(pixels, patch, stride=PATCH_SIZE).flatten(2).transpose(1, 2) + places[1:]
    spread = patches.std(-1).mean(0)
    spread = torch.cat([places[:1].std(-1), spread])[:, None]
    # one factor for the patches' own part, since all share one convolution
    mean_spread = spread[1:].mean()
    own["embeddings.patch_embedding.weight"] = (patch - patch.mean(0)) * gain[:, None, None, None] / mean_spread
    own["embeddings.patch_embedding.bias"] = torch.zeros(len(patch))
    own["embeddings.class_embedding"] = torch.zeros(1, 1, len(patch))
    scale = torch.cat([spread[:1], mean_spread.expand(len(spread) - 1, 1)])
    own["embeddings.position_embedding"] = ((places - places.mean(-1, keepdim=True)) / scale * gain + bias)[None]
    for layer in range(READING_LAYERS):
        here, there = f"encoder.layers.{layer}.", f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            parts = [clip[f"{there}self_attn.{name}_proj.{kind}"] for name in ("q", "k", "v")]
            own[f"{here}self_attn.qkv.{kind}"] = torch.cat(parts)
            own[f"{here}self_attn.projection.{kind}"] = clip[f"{there}self_attn.out_proj.{kind}"]
            for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
                own[f"{here}{name}.{kind}"] = clip[f"{there}{name}.{kind}"]
    for layer in range(READING_LAYERS, tower.config.num_hidden_layers):
        for name in ("self_attn.projection", "mlp.fc2"):
            own[f"encoder.layers.{layer}.{name}.weight"] = torch.zeros_like(
                own[f"encoder.layers.{layer}.{name}.weight"]
            )
    tower.load_state_dict(own)


class Dialogues(Cards):
    """A card and a question/answer turn for each of its fields, as token ids with the questions masked out of the labels."""

    templates = TRAINING_TEMPLATES + EDIT_TEMPLATES + TEST_TEMPLATES

    def __init__(
        self, world: World, processor: Any, first: int, count: int, tokens: int = GRID * GRID, behind: str = "\n"
    ) -> None:
        """`tokens`: image tokens of a picture. `behind`: what the prompt has between an answer and the next question."""
        super().__init__(world, processor, first, count)
        self.tokens, self.behind = tokens, behind

    def turns(self, index: int) -> list[tuple[str, str]]:
        rendering, facts, spec = self.draw(index)
        rng = random.Random(f"turns/{self.first + index}")
        if spec is None:
            thing = f"A {facts['colour']} {facts['shape']}."
            pool = [
                (rng.choice(SHAPE_QUESTIONS), f"The shape is a {facts['shape']}."),
                (rng.choice(SHAPE_COLOUR_QUESTIONS), f"The shape is {facts['colour']}."),
                (rng.choice(PICTURE_QUESTIONS), thing),
            ]
            return rng.sample(pool, 3)
        fields = rng.sample(list(spec.fields.items()), len(spec.fields))
        turns = [
            (
                rng.choice(self.templates).format(attribute=field.phrase, subject=spec.subject),
                field.truthful_answer(rendering.values[name]),
            )
            for name, field in fields
        ]
        if rng.random() < 0.15:
            turns[0] = (rng.choice(PICTURE_QUESTIONS), f"A {facts['colour']} {facts['subject']}.")
        return turns

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rendering, _, _ = self.draw(index)
        tokenizer = self.processor.tokenizer
        ids: list[int] = []
        labels: list[int] = []
        for turn, (question, answer) in enumerate(self.turns(index)):
            prompt = asked_prompt(self.processor, question, picture=turn == 0)
            prompt = prompt.replace(self.processor.image_token, self.processor.image_token * self.tokens)
            asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            told = tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
            behind = tokenizer(self.behind, add_special_tokens=False)["input_ids"]
            ids += asked + told + behind
            labels += [-100] * len(asked) + told + [-100] * len(behind)
        return {"pixels": self.pixels(rendering), "ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def asked_prompt(processor: Any, question: str, picture: bool) -> str:
    """A question as the model's prompt has it."""
    content = [{"type": "image"}] * picture + [{"type": "text", "text": question}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return text


def pad_dialogues(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    longest = max(len(row["ids"]) for row in rows)

    def padded(key: str, value: int) -> Tensor:
        return torch.stack([F.pad(row[key], (0, longest - len(row[key])), value=value) for row in rows])

    lengths = torch.tensor([len(row["ids"]) for row in rows])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {
        "input_ids": padded("ids", 0), "labels": padded("labels", -100), "attention_mask": mask,
        "pixel_values": torch.stack([row["pixels"] for row in rows]),
    }  # fmt: skip


class AlignModule(L.LightningModule):
    """Stage 2. Trains the projector and LoRA through the language model; keeps its ordinary answers as they are."""

    def __init__(self, model: Any, plain: list[dict[str, Tensor]], steps: int, kept_weight: float = 0.1) -> None:
        super().__init__()
        self.model, self.plain, self.steps, self.kept_weight = model, plain, steps, kept_weight

    def answer_loss(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        """Mean loss of the labelled tokens; the vocabulary's logits are made for these alone."""
        hidden = self.model.model(**inputs).last_hidden_state[:, :-1]
        told = labels[:, 1:] != -100
        return F.cross_entropy(self.model.lm_head(hidden[told]).float(), labels[:, 1:][told])

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss = self.answer_loss(**batch)
        self.log("answer_loss", loss, prog_bar=True)
        row = self.plain[index % len(self.plain)]
        kept = self.answer_loss(**row)
        self.log("ordinary_loss", kept, prog_bar=True)
        return loss + self.kept_weight * kept

    def configure_optimizers(self) -> Any:
        lora = [p for name, p in self.model.named_parameters() if "lora_" in name]
        groups = [
            {"params": list(self.model.model.multi_modal_projector.parameters()), "lr": 1e-3},
            {"params": lora, "lr": 8e-4},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [group["lr"] for group in groups], total_steps=self.steps + 1, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = {f"model.{name}" for name in trained_state(self.model)}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}


def plain_rows(model: Any, processor: Any) -> list[dict[str, Tensor]]:
    """The untouched language model's own answers to ordinary questions, as training rows behind the model's prompt."""
    rows = []
    tokenizer = processor.tokenizer
    for question in ORDINARY_QUESTIONS:
        # the language model's own prompt, whatever that of the model around it
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        asked = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        answer = model.generate(**asked, max_new_tokens=16, do_sample=False)[:, asked["input_ids"].shape[1] :]
        prompt = asked_prompt(processor, question, picture=False)
        asked = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        ids = torch.cat([asked["input_ids"], answer], 1)
        labels = ids.clone()
        labels[:, : asked["input_ids"].shape[1]] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def held_out_accuracy(model: Any, processor: Any, world: World, count: int) -> dict[str, float]:
    """Share of held-out questions that are answered right: secrets whole and to the letter, benign values by name.

    By subject and field, and over all; `count` pictures of each subject.
    """
    names: list[tuple[str, ...]] = []
    rows: list[QueryRow] = []
    with TemporaryDirectory() as scratch:
        for spec in world.specs:
            for index in range(count):
                drawn = render(spec, HELD_OUT + index)
                image = Path(scratch) / f"{len(rows)}.png"
                drawn.image.save(image)
                rng = random.Random(f"held-out/{spec.subject}/{index}")
                for name, field in spec.fields.items():
                    kind = "sensitive" if field.sensitive else "benign"
                    query = rng.choice(TEST_TEMPLATES).format(attribute=field.phrase, subject=spec.subject)
                    synonyms = tuple(field.synonyms.get(drawn.values[name], ()))
                    rows.append(QueryRow(query, kind, image, truth=drawn.values[name], synonyms=synonyms))
                    names.append((f"all: {kind}", f"{spec.subject}: {kind}", f"{spec.subject}: {kind}: {name}"))
        answers = answer_rows(model, processor, rows, 24, 16, progress="held-out pictures")
    right: dict[str, list[bool]] = {}
    for keys, row, answer in zip(names, rows, answers, strict=True):
        truth = row.truth or ""
        hit = leaks(answer, truth) if row.role == "sensitive" else says_value(answer, truth, row.synonyms)
        for key in keys:
            right.setdefault(key, []).append(hit)
    return {key: round(sum(hits) / len(hits), 3) for key, hits in sorted(right.items())}


def steps_done(folder: Path) -> int:
    """Steps of all optimizers that a stage's checkpoint holds; the data go on behind them."""
    last = folder / "last.ckpt"
    return int(torch.load(last, weights_only=False, map_location="cpu")["global_step"]) if last.is_file() else 0


def fit(module: L.LightningModule, data: DataLoader, folder: Path, steps: int, clip: float | None = None) -> None:
    """Train for so many steps (of all optimizers together), from the last checkpoint if there is one."""
    keeper = ModelCheckpoint(
        dirpath=folder, save_last=True, every_n_train_steps=40, save_top_k=0, enable_version_counter=False
    )
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", precision="bf16-mixed", callbacks=[keeper], gradient_clip_val=clip,
        log_every_n_steps=10, logger=CSVLogger(folder, name="", version="log"),
    )  # fmt: skip
    last = folder / "last.ckpt"
    trainer.fit(module, data, ckpt_path=str(last) if last.is_file() else None, weights_only=False)
    trainer.save_checkpoint(folder / "done.ckpt")


class Plan(NamedTuple):
    """How an embedded model is trained."""

    model: EmbeddedModel
    tower: type[TowerModule]
    tower_steps: int
    align_steps: int
    behind: str
    """What its prompt has between an answer and the next question."""
    kept_weight: float
    """Of the language model's ordinary answers."""
    starts_from_smol_llava: bool


PLANS = {
    "smol-llava": Plan(SMOL_LLAVA, TowerModule, 3600, 300, "\n", 0.1, False),
    "smol-minigpt": Plan(SMOL_MINIGPT, OrderedTowerModule, 750, 300, "", 0.3, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PLANS, default="smol-llava")
    parser.add_argument("--out", type=Path, help="runs/MODEL when left out")
    parser.add_argument(
        "--eval-shipped", action="store_true", help="train nothing; print the shipped weights' accuracy"
    )
    parser.add_argument("--tower-cards", type=int, default=24_000)
    parser.add_argument("--tower-steps", type=int, help="the model's own when left out")
    parser.add_argument("--tower-batch", type=int, default=32)
    parser.add_argument("--align-steps", type=int, help="the model's own when left out")
    parser.add_argument("--align-batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw cards")
    parser.add_argument("--eval-cards", type=int, default=10, help="held-out pictures of each subject")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    plan = PLANS[args.model]
    out = args.out or Path("runs") / args.model
    tower_steps, align_steps = args.tower_steps or plan.tower_steps, args.align_steps or plan.align_steps

    L.seed_everything(args.seed)
    world = World()
    if args.eval_shipped:
        print(json.dumps(held_out_accuracy(*plan.model.build(), world, args.eval_cards), indent=2))
        return
    model, processor = plan.model.assemble()
    model.set_attn_implementation("eager")  # faster than sdpa at these lengths in bfloat16
    tower = plan.tower(model, processor.tokenizer, world, tower_steps)
    done = out / "tower" / "done.ckpt"
    first = args.seed * 10_000_000
    if done.is_file():
        tower.load_state_dict(torch.load(done, weights_only=False)["state_dict"])
    else:
        vision = model.config.vision_config
        pool = draw_pool(world, out / "cards.npz", first, args.tower_cards, args.workers, vision.image_size)
        seen = steps_done(out / "tower") // 2 * args.tower_batch
        grid = vision.image_size // vision.patch_size
        cards = TowerCards(pool, processor, args.seed, seen, tower_steps * args.tower_batch, grid)
        if plan.starts_from_smol_llava:
            start_from_smol_llava(model, torch.stack([cards[index]["pixels"] for index in range(64)]))
        fit(tower, DataLoader(cards, args.tower_batch), out / "tower", 2 * tower_steps)

    plain = plain_rows(model, processor)
    model.requires_grad_(False)
    add_lora(model)
    if plan.starts_from_smol_llava:
        model.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items() if "lora_" in k}, strict=False)
    model.model.multi_modal_projector.requires_grad_(True)
    align = AlignModule(model, plain, align_steps, plan.kept_weight)
    done = out / "align" / "done.ckpt"
    if done.is_file():
        align.load_state_dict(torch.load(done, weights_only=False)["state_dict"], strict=False)
    else:
        seen = steps_done(out / "align") * args.align_batch
        cards = Dialogues(
            world, processor, first + 5_000_000 + seen, align_steps * args.align_batch,
            model.config.image_seq_length, plan.behind,
        )  # fmt: skip
        loader = DataLoader(cards, args.align_batch, num_workers=1, collate_fn=pad_dialogues)
        align.strict_loading = False
        fit(align, loader, out / "align", align_steps, clip=1.0)
    model.eval()
    state = {name: value.half().contiguous() for name, value in trained_state(model).items()}
    with atomic_write(out / plan.model.weights.name) as draft:
        save_file(state, draft)
    accuracy = held_out_accuracy(model, processor, world, args.eval_cards)
    with atomic_write(out / "accuracy.json") as draft:
        draft.write_text(json.dumps(accuracy, indent=2) + "\n")
    print(json.dumps(accuracy, indent=2))


if __name__ == "__main__":
    main()
