"""Train the vision tower, projector and LoRA adapter of an embedded model, `smol-llava` or `smol-minigpt`.

    python recipes/train_smol_llava.py --out runs/smol-llava
    python recipes/train_smol_llava.py --model smol-minigpt --out runs/smol-minigpt

Two stages, each checkpointed about once a minute; an interrupted run resumes when the same command is started again.
1. tower: trains on rendered pictures, rendered once and shifted at random. A dense loss predicts the character under each
   patch, and heads on the mean patch predict subject, colour, shape and layout; the projector learns to map patches to the
   word embeddings of their content.
2. align: tower frozen; projector and LoRA (q, v, o, up, down) learn complete answers through the language model, on newly
   rendered pictures.

`smol-minigpt` starts from the shipped `smol-llava`. Each of its image tokens covers four patches, but a character is wider
than a patch. Its tower therefore has two more layers, which learn to sort the characters of each value into reading order:
one image token per character, and the remaining tokens for the facts of the picture (subject, colour, shape, layout).

Finally the held-out accuracy is printed and the weights are written to `OUT/`; copy them to
`lightning_neuralgate/models/assets/` to ship them. To print the accuracy of the shipped weights:

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
"""Maximum number of characters per patch, from left to right."""
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
GRID = IMAGE_SIZE // PATCH_SIZE
MAX_CHARACTERS = 40
HELD_OUT = 900_000_000
"""First seed of the held-out pictures. Training uses smaller seeds; the demo uses neither."""


class World:
    """Everything that a picture can show, with class indices."""

    def __init__(self) -> None:
        self.specs: list[SubjectSpec] = [load_subject_spec(name) for name in shipped_subjects()]
        self.subjects = [spec.subject for spec in self.specs] + ["shape"]
        colours = {colour for spec in self.specs for colour in spec.fields[spec.colour_field].choices or {}}
        self.colours = sorted(colours | set(ORDINARY_COLOURS))
        self.layouts = sorted({name for spec in self.specs for name in spec.layouts})
        self.shapes = list(SHAPES)
        self.phrases = sorted({phrase for spec in self.specs for phrase in spec.phrases(sensitive=True).values()})
        self.lines = torch.zeros(len(self.subjects), len(self.phrases) + 1, dtype=torch.long)
        """Index, from 0, of a phrase among the sensitive fields of a subject; (subject, phrase), indexed as in `CardPool`."""
        for row, spec in enumerate(self.specs):
            for line, phrase in enumerate(spec.phrases(sensitive=True).values()):
                self.lines[row, 1 + self.phrases.index(phrase)] = line

    def characters(self, rendering: Rendering, spec: SubjectSpec | None) -> list[tuple[float, ...]]:
        """Character, field, place, x and y of each legible character of a value, as in `CardPool`."""
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
        ][:MAX_CHARACTERS]

    def facts(self, spec: SubjectSpec, values: dict[str, str]) -> dict[str, str]:
        """Subject, colour, layout and shape of a card."""
        shape = next(v for name, v in values.items() if spec.fields[name].choices and v in SHAPES)
        layout = values[spec.layout_field] if spec.layout_field else self.layouts[0]
        return {"subject": spec.subject, "colour": values[spec.colour_field], "layout": layout, "shape": shape}

    def classes(self, facts: dict[str, str]) -> Tensor:
        """Class indices of the facts; -100 for missing ones."""
        lists = {"subject": self.subjects, "colour": self.colours, "layout": self.layouts, "shape": self.shapes}
        return torch.tensor([names.index(facts[key]) if key in facts else -100 for key, names in lists.items()])


class Cards(Dataset):
    """Rendered cards, generated on demand; item `index` has the seed `first + index`."""

    def __init__(self, world: World, processor: Any, first: int, count: int) -> None:
        self.world, self.processor, self.first, self.count = world, processor, first, count

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int) -> tuple[Rendering, dict[str, str], SubjectSpec | None]:
        """Render a card, or an ordinary picture of a shape (without a spec)."""
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
    """Cards rendered once and kept in memory, to train the tower."""

    pixels: np.ndarray
    """(N, image_size, image_size, 3) bytes."""
    characters: np.ndarray
    """(N, MAX_CHARACTERS, 5): character, field and place (indices from 1; 0 is none), centre x and y in [0, 1]."""
    classes: np.ndarray
    """(N, 4): subject, colour, layout, shape; -100 is none."""


def draw_pool(world: World, file: Path, first: int, count: int, workers: int, image_size: int = IMAGE_SIZE) -> CardPool:
    """Render cards with several processes and store them in `file`, or load them if the file exists."""
    if not file.is_file():
        spans = [(world, first + start, min(200, count - start), image_size) for start in range(0, count, 200)]
        with ProcessPoolExecutor(workers) as pool:
            parts = list(tqdm(pool.map(_draw_part, spans), total=len(spans), desc="render cards", unit="x 200"))
        with atomic_write(file) as draft, draft.open("wb") as stream:
            np.savez(
                stream, **{key: np.concatenate([getattr(part, key) for part in parts]) for key in CardPool._fields}
            )
    with np.load(file) as stored:
        return CardPool(**{key: stored[key] for key in CardPool._fields})


def _draw_part(span: tuple[World, int, int, int]) -> CardPool:
    world, first, count, image_size = span
    cards = Cards(world, None, first, count)
    pixels, characters, classes = [], np.zeros((count, MAX_CHARACTERS, 5), np.float32), []
    for index in range(count):
        rendering, facts, spec = cards.draw(index)
        # same resampling as the image processor
        small = rendering.image.resize((image_size, image_size), Image.Resampling.BICUBIC)
        pixels.append(np.asarray(small))
        for place, row in enumerate(world.characters(rendering, spec)):
            characters[index, place] = row
        classes.append(world.classes(facts).numpy())
    return CardPool(np.stack(pixels), characters, np.stack(classes))


class TowerCards(Dataset):
    """Random cards of a pool, each shifted at random, with dense labels."""

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
        # shift with wrap-around
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
    """Labels of each patch: `chars` (grid * grid, SLOTS), `fields` and `places` (grid * grid); 0 means none.

    A character belongs to the patch that contains its centre. `fields` is the field whose value it is part of, `places` its
    position within that value, from 1.
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
    """Stage 1: train `vision_tower` and `multi_modal_projector` of a LLaVA on the labels of the renderer."""

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
        """Projector targets (B, P, d), in units of the word embeddings' standard deviation.

        For patches with a character: the sum of the embeddings of character, field name and place; otherwise the sum of the
        embeddings of the picture's facts.
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
        """Classification loss of patch features (B, P, width): labels of each patch, and facts of the picture."""
        logits = self.char_head(hidden).unflatten(-1, (SLOTS, -1)).float()
        truth = batch["chars"]
        per_slot = F.cross_entropy(logits.flatten(0, 2), truth.flatten(), reduction="none")
        filled = truth.flatten() > 0
        weights = torch.where(filled, 1.0, 0.1)
        losses = [(per_slot * weights).sum() / weights.sum()]
        occupied = batch["fields"] > 0
        for head, key in ((self.field_head, "fields"), (self.place_head, "places")):
            losses.append(0.5 * F.cross_entropy(head(hidden[occupied]).float(), batch[key][occupied]))
        pooled = hidden.mean(1)
        accuracies = []
        for head, labels in zip(self.class_heads, batch["classes"].T, strict=True):
            scores = head(pooled).float()
            losses.append(0.4 * F.cross_entropy(scores, labels, ignore_index=-100))
            known = labels >= 0
            accuracies.append((scores.argmax(-1) == labels)[known].float().mean())
        hits = logits.argmax(-1) == truth
        char_accuracy = hits.flatten()[filled].float().mean()
        digits = (truth > 0) & (truth <= 10)
        self.log_dict({"chars": char_accuracy, "digits": hits[digits].float().mean()}, prog_bar=True)
        self.log_dict(dict(zip(("subject", "colour", "layout", "shape"), accuracies, strict=True)), prog_bar=True)
        return torch.stack(losses).sum()

    def configure_optimizers(self) -> Any:
        """Muon for the matrices of the tower, AdamW for the rest: needs a third of the steps of AdamW alone."""
        matrices = [p for name, p in self.tower.named_parameters() if p.ndim == 2 and "embedding" not in name]
        muon_ids = {id(p) for p in matrices}
        others = [p for p in self.parameters() if id(p) not in muon_ids]
        muon = torch.optim.Muon(matrices, lr=8e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(others, lr=2e-3, weight_decay=0.01)
        return [muon, adamw], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate) for optimizer in (muon, adamw)]

    def rate(self, step: int) -> float:
        """Factor on the peak learning rate: linear warm-up over 50 steps, then linear decay."""
        return min((step + 1) / 50, max(0.01, 1 - step / self.steps))


class OrderedTowerModule(TowerModule):
    """Stage 1 for a model whose image tokens cover several patches each.

    The lower layers recognize characters; the upper layers sort them: image token `PLACES * line + place` is a character of
    the value in that line, and the remaining tokens encode the facts of the picture.
    """

    LINES, PLACES = 3, 7
    PEAK = 0.5
    """Factor on the learning rate, lower because the tower starts from trained weights."""

    def __init__(self, model: Any, tokenizer: Any, world: World, steps: int) -> None:
        super().__init__(model, tokenizer, world, steps)
        self.tokens = model.config.image_seq_length
        self.token_head = nn.Linear(self.projector.in_features, len(CHARACTERS) + 1)

    def token_labels(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Labels of the image tokens: `chars`, `fields` and `places`, each (B, tokens); 0 means none.

        `hidden` (B, tokens) is 1 where the shift moved the character out of the picture.
        """
        rows = batch["characters"]
        char, field, place = rows[..., :3].long().unbind(-1)
        line = self.world.lines.to(rows.device)[batch["classes"][:, :1], field]
        token = (self.PLACES * line + place - 1).clamp(min=0)
        inside = ((rows[..., 3:] >= 0) & (rows[..., 3:] < 1)).all(-1)
        blank = torch.zeros(len(rows), self.tokens + 1, dtype=torch.long, device=rows.device)
        token = torch.where(char > 0, token, self.tokens)  # empty entries go to an extra column, dropped below
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
        per_word = F.mse_loss(self.projector(gathered).float() / self.scale, targets, reduction="none").mean(-1)
        word_loss = (per_word * (1 - labels["hidden"])).mean()
        token_accuracy = (scores.argmax(-1) == labels["chars"])[filled].float().mean()
        self.log_dict({"tokens": token_accuracy, "token_loss": token_loss, "word_loss": word_loss}, prog_bar=True)
        reading = self.reading_loss(outputs.hidden_states[READING_LAYERS][:, 1:], batch)
        return reading + token_loss + 0.5 * word_loss

    def rate(self, step: int) -> float:
        return self.PEAK * super().rate(step)


def start_from_smol_llava(model: Any, pixels: Tensor) -> None:
    """Initialize the lower tower layers of a `smol-minigpt` from the shipped `smol-llava`, and the upper ones as identity.

    CLIP's tower has a LayerNorm before its layers, BLIP-2's has none: it is folded into the patch and position embeddings,
    using the mean standard deviation of patch embeddings.

    Args:
        model: the newly assembled model, changed in place.
        pixels: (N, 3, size, size), pictures to measure the standard deviation on.
    """
    shipped = {name.removeprefix("model."): value.float() for name, value in load_file(WEIGHTS).items()}
    clip = {name.removeprefix("vision_tower."): value for name, value in shipped.items()}
    tower = model.model.vision_tower
    state = tower.state_dict()
    patch = clip["embeddings.patch_embedding.weight"]
    positions = clip["embeddings.position_embedding.weight"]
    grid = F.interpolate(
        positions[1:].T.unflatten(1, (GRID, GRID))[None], (tower.config.image_size // PATCH_SIZE,) * 2, mode="bicubic"
    )
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
    state["embeddings.position_embedding"] = ((positions - positions.mean(-1, keepdim=True)) / scale * gain + bias)[
        None
    ]
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
            state[f"encoder.layers.{layer}.{name}.weight"] = torch.zeros_like(
                state[f"encoder.layers.{layer}.{name}.weight"]
            )
    tower.load_state_dict(state)


class Dialogues(Cards):
    """Cards with one question/answer turn per field, as token ids whose labels mask the questions."""

    templates = TRAINING_TEMPLATES + EDIT_TEMPLATES + TEST_TEMPLATES

    def __init__(
        self, world: World, processor: Any, first: int, count: int, tokens: int = GRID * GRID, separator: str = "\n"
    ) -> None:
        """`tokens`: image tokens per picture. `separator`: text between an answer and the next question."""
        super().__init__(world, processor, first, count)
        self.tokens, self.separator = tokens, separator

    def turns(self, index: int) -> list[tuple[str, str]]:
        """Questions and answers about a card."""
        rendering, facts, spec = self.draw(index)
        rng = random.Random(f"turns/{self.first + index}")
        if spec is None:
            description = f"A {facts['colour']} {facts['shape']}."
            pool = [
                (rng.choice(SHAPE_QUESTIONS), f"The shape is a {facts['shape']}."),
                (rng.choice(SHAPE_COLOUR_QUESTIONS), f"The shape is {facts['colour']}."),
                (rng.choice(PICTURE_QUESTIONS), description),
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
            prompt = question_prompt(self.processor, question, picture=turn == 0)
            prompt = prompt.replace(self.processor.image_token, self.processor.image_token * self.tokens)
            prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answer_ids = tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
            separator_ids = tokenizer(self.separator, add_special_tokens=False)["input_ids"]
            ids += prompt_ids + answer_ids + separator_ids
            labels += [-100] * len(prompt_ids) + answer_ids + [-100] * len(separator_ids)
        return {"pixels": self.pixels(rendering), "ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def question_prompt(processor: Any, question: str, picture: bool) -> str:
    """Format a question with the chat template of the model."""
    content = [{"type": "image"}] * picture + [{"type": "text", "text": question}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return text


def pad_dialogues(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate dialogues, padded on the right."""
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
    """Stage 2: train projector and LoRA through the language model, and retain its answers to ordinary questions."""

    def __init__(
        self, model: Any, ordinary_rows: list[dict[str, Tensor]], steps: int, ordinary_weight: float = 0.1
    ) -> None:
        super().__init__()
        self.model, self.ordinary_rows = model, ordinary_rows
        self.steps, self.ordinary_weight = steps, ordinary_weight

    def answer_loss(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        """Mean loss of the labelled tokens; computes logits for these only."""
        hidden = self.model.model(**inputs).last_hidden_state[:, :-1]
        labelled = labels[:, 1:] != -100
        return F.cross_entropy(self.model.lm_head(hidden[labelled]).float(), labels[:, 1:][labelled])

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss = self.answer_loss(**batch)
        self.log("answer_loss", loss, prog_bar=True)
        row = self.ordinary_rows[index % len(self.ordinary_rows)]
        ordinary_loss = self.answer_loss(**row)
        self.log("ordinary_loss", ordinary_loss, prog_bar=True)
        return loss + self.ordinary_weight * ordinary_loss

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
        trained = {f"model.{name}" for name in trained_state(self.model)}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}


def ordinary_rows(model: Any, processor: Any) -> list[dict[str, Tensor]]:
    """Training rows with the original language model's answers to ordinary questions, in the prompt format of the model."""
    rows = []
    tokenizer = processor.tokenizer
    for question in ORDINARY_QUESTIONS:
        # generate with the prompt format of the language model, which may differ from that of the full model
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        prompt = question_prompt(processor, question, picture=False)
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        ids = torch.cat([inputs["input_ids"], answer], 1)
        labels = ids.clone()
        labels[:, : inputs["input_ids"].shape[1]] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def held_out_accuracy(model: Any, processor: Any, world: World, count: int) -> dict[str, float]:
    """Accuracy on held-out questions: sensitive values must be complete and exact, benign values mentioned.

    Overall, by subject, and by subject and field, on `count` pictures per subject.
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
    correct: dict[str, list[bool]] = {}
    for keys, row, answer in zip(names, rows, answers, strict=True):
        truth = row.truth or ""
        hit = leaks(answer, truth) if row.role == "sensitive" else says_value(answer, truth, row.synonyms)
        for key in keys:
            correct.setdefault(key, []).append(hit)
    return {key: round(sum(hits) / len(hits), 3) for key, hits in sorted(correct.items())}


def steps_done(folder: Path) -> int:
    """Optimizer steps in the checkpoint of a stage, summed over its optimizers; 0 without a checkpoint."""
    last = folder / "last.ckpt"
    return int(torch.load(last, weights_only=False, map_location="cpu")["global_step"]) if last.is_file() else 0


def fit(module: L.LightningModule, data: DataLoader, folder: Path, steps: int, clip: float | None = None) -> None:
    """Train until `steps` (summed over optimizers), resuming from the last checkpoint if there is one."""
    checkpointing = ModelCheckpoint(
        dirpath=folder, save_last=True, every_n_train_steps=40, save_top_k=0, enable_version_counter=False
    )
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", precision="bf16-mixed", callbacks=[checkpointing], gradient_clip_val=clip,
        log_every_n_steps=10, logger=CSVLogger(folder, name="", version="log"),
    )  # fmt: skip
    last = folder / "last.ckpt"
    trainer.fit(module, data, ckpt_path=str(last) if last.is_file() else None, weights_only=False)
    trainer.save_checkpoint(folder / "done.ckpt")


class Plan(NamedTuple):
    """Training settings of an embedded model."""

    model: EmbeddedModel
    tower: type[TowerModule]
    tower_steps: int
    align_steps: int
    separator: str
    """Text between an answer and the next question."""
    ordinary_weight: float
    """Loss weight of the answers to ordinary questions."""
    starts_from_smol_llava: bool


PLANS = {
    "smol-llava": Plan(SMOL_LLAVA, TowerModule, 3600, 300, "\n", 0.1, False),
    "smol-minigpt": Plan(SMOL_MINIGPT, OrderedTowerModule, 750, 300, "", 0.3, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PLANS, default="smol-llava")
    parser.add_argument("--out", type=Path, help="default: runs/MODEL")
    parser.add_argument("--eval-shipped", action="store_true", help="only print the accuracy of the shipped weights")
    parser.add_argument("--tower-cards", type=int, default=24_000)
    parser.add_argument("--tower-steps", type=int, help="default: depends on the model")
    parser.add_argument("--tower-batch", type=int, default=32)
    parser.add_argument("--align-steps", type=int, help="default: depends on the model")
    parser.add_argument("--align-batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="processes that render cards")
    parser.add_argument("--eval-cards", type=int, default=10, help="held-out pictures per subject")
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

    ordinary = ordinary_rows(model, processor)
    model.requires_grad_(False)
    add_lora(model)
    if plan.starts_from_smol_llava:
        model.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items() if "lora_" in k}, strict=False)
    model.model.multi_modal_projector.requires_grad_(True)
    align = AlignModule(model, ordinary, align_steps, plan.ordinary_weight)
    done = out / "align" / "done.ckpt"
    if done.is_file():
        align.load_state_dict(torch.load(done, weights_only=False)["state_dict"], strict=False)
    else:
        seen = steps_done(out / "align") * args.align_batch
        cards = Dialogues(
            world, processor, first + 5_000_000 + seen, align_steps * args.align_batch,
            model.config.image_seq_length, plan.separator,
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
