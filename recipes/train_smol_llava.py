"""Train the tower, projector and LoRA adapter of the embedded `smol-llava`.

    python recipes/train_smol_llava.py --out runs/smol-llava

Two stages, each checkpointed about once a minute; start the same command again and it goes on where it was.
1. tower: rendered pictures only, drawn once and shown shifted. A dense loss says which character lies under each patch,
   and heads on the mean patch say subject, colour, shape and layout; the projector learns to land on the word embeddings
   of what lies there.
2. align: tower frozen; projector and LoRA (q, v, o, up, down) learn whole answers through the language model, on newly
   drawn pictures.

Afterwards the held-out accuracy is printed and the weights are written to `OUT/smol_llava.safetensors`; copy them to
`lightning_neuralgate/models/assets/` to ship them. The accuracy of the shipped weights:

    python recipes/train_smol_llava.py --eval-shipped
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
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lightning_neuralgate.cache import written_whole
from lightning_neuralgate.data.answering import answer_rows
from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.queries import (
    EDIT_TEMPLATES,
    ORDINARY_QUESTIONS,
    PICTURE_QUESTIONS,
    SHAPE_COLOUR_QUESTIONS,
    SHAPE_QUESTIONS,
    TEST_TEMPLATES,
    TRAINING_TEMPLATES,
)
from lightning_neuralgate.data.render import ORDINARY_COLOURS, SHAPES, Rendering, ordinary_picture, render
from lightning_neuralgate.data.spec import SubjectSpec, load_subject_spec, shipped_subjects
from lightning_neuralgate.metrics.functional import leaks, says_value
from lightning_neuralgate.models.smol import (
    IMAGE_SIZE,
    PATCH_SIZE,
    add_lora,
    assemble_smol_llava,
    build_smol_llava,
    trained_state,
)

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
    """(N, IMAGE_SIZE, IMAGE_SIZE, 3) bytes."""
    characters: np.ndarray
    """(N, MOST_CHARACTERS, 5): character, field and place (indices from 1; 0 is none), centre x and y as shares."""
    classes: np.ndarray
    """(N, 4): subject, colour, layout, shape; -100 is none."""


def draw_pool(world: World, file: Path, first: int, count: int, workers: int) -> CardPool:
    """The cards from a seed on, drawn by several processes; kept in a file."""
    if not file.is_file():
        spans = [(world, first + start, min(200, count - start)) for start in range(0, count, 200)]
        with ProcessPoolExecutor(workers) as pool:
            parts = list(tqdm(pool.map(_draw_part, spans), total=len(spans), desc="draw cards", unit="x 200"))
        with written_whole(file) as draft, draft.open("wb") as stream:
            np.savez(
                stream, **{key: np.concatenate([getattr(part, key) for part in parts]) for key in CardPool._fields}
            )
    with np.load(file) as kept:
        return CardPool(**{key: kept[key] for key in CardPool._fields})


def _draw_part(span: tuple[World, int, int]) -> CardPool:
    world, first, count = span
    cards = Cards(world, None, first, count)
    pixels, characters, classes = [], np.zeros((count, MOST_CHARACTERS, 5), np.float32), []
    for index in range(count):
        rendering, facts, spec = cards.draw(index)
        # as the processor does it
        small = rendering.image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        pixels.append(np.asarray(small))
        for place, row in enumerate(world.characters(rendering, spec)):
            characters[index, place] = row
        classes.append(world.classes(facts).numpy())
    return CardPool(np.stack(pixels), characters, np.stack(classes))


class TowerCards(Dataset):
    """Cards of a pool in random order, each time shifted differently, with their dense labels."""

    SHIFT = round(0.045 * IMAGE_SIZE)

    def __init__(self, pool: CardPool, processor: Any, seed: int, first: int, count: int) -> None:
        self.pool, self.seed, self.first, self.count = pool, seed, first, count
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
        characters[:, 3:] += np.array((x, y)) / IMAGE_SIZE
        return {
            "pixels": (pixels - self.mean) / self.std,
            "classes": torch.from_numpy(self.pool.classes[card]),
            **dense_labels(characters),
        }


def dense_labels(characters: np.ndarray) -> dict[str, Tensor]:
    """What lies under each patch: `chars` (GRID * GRID, SLOTS), `fields` and `places` (GRID * GRID); 0 is nothing.

    A character belongs to the patch that its middle lies in. `fields` says whose value it is part of, `places` the
    index within that value.
    """
    chars = torch.zeros(GRID, GRID, SLOTS, dtype=torch.long)
    fields, places = (torch.zeros(GRID, GRID, dtype=torch.long) for _ in range(2))
    for char, field, place, x, y in characters:
        row, column = math.floor(y * GRID), math.floor(x * GRID)
        if char == 0 or not (0 <= row < GRID and 0 <= column < GRID):
            continue
        chars[row, column, int(x * GRID * SLOTS) % SLOTS] = int(char)
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
        word_loss = F.mse_loss(self.projector(hidden).float() / self.scale, self.word_targets(batch))
        hits = logits.argmax(-1) == truth
        chars_right = hits.flatten()[filled].float().mean()
        digits = (truth > 0) & (truth <= 10)
        self.log_dict(
            {"chars": chars_right, "digits": hits[digits].float().mean(), "word_loss": word_loss}, prog_bar=True
        )
        self.log_dict(dict(zip(("subject", "colour", "layout", "shape"), right, strict=True)), prog_bar=True)
        return torch.stack(losses).sum() + 0.5 * word_loss

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


class Dialogues(Cards):
    """A card and a question/answer turn for each of its fields, as token ids with the questions masked out of the labels."""

    templates = TRAINING_TEMPLATES + EDIT_TEMPLATES + TEST_TEMPLATES

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
                field.told(rendering.values[name]),
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
            image = "<image>" * (GRID * GRID) + "\n" if turn == 0 else ""
            prompt = f"<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"
            asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            told = tokenizer(f"{answer}<|im_end|>\n", add_special_tokens=False)["input_ids"]
            ids += asked + told
            labels += [-100] * len(asked) + told[:-1] + [-100]
        return {"pixels": self.pixels(rendering), "ids": torch.tensor(ids), "labels": torch.tensor(labels)}


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

    def __init__(self, model: Any, plain: list[dict[str, Tensor]], steps: int) -> None:
        super().__init__()
        self.model, self.plain, self.steps = model, plain, steps

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
        return loss + 0.1 * kept

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


def plain_rows(model: Any, tokenizer: Any) -> list[dict[str, Tensor]]:
    """The untouched language model's own answers to ordinary questions, as training rows."""
    rows = []
    for question in ORDINARY_QUESTIONS:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        asked = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        answer = model.generate(**asked, max_new_tokens=16, do_sample=False)
        labels = answer.clone()
        labels[:, : asked["input_ids"].shape[1]] = -100
        rows.append({"input_ids": answer, "labels": labels})
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/smol-llava"))
    parser.add_argument(
        "--eval-shipped", action="store_true", help="train nothing; print the shipped weights' accuracy"
    )
    parser.add_argument("--tower-cards", type=int, default=24_000)
    parser.add_argument("--tower-steps", type=int, default=3600)
    parser.add_argument("--tower-batch", type=int, default=32)
    parser.add_argument("--align-steps", type=int, default=300)
    parser.add_argument("--align-batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw cards")
    parser.add_argument("--eval-cards", type=int, default=10, help="held-out pictures of each subject")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    L.seed_everything(args.seed)
    world = World()
    if args.eval_shipped:
        print(json.dumps(held_out_accuracy(*build_smol_llava(), world, args.eval_cards), indent=2))
        return
    model, processor = assemble_smol_llava()
    model.set_attn_implementation("eager")  # faster than sdpa at these lengths in bfloat16
    tower = TowerModule(model, processor.tokenizer, world, args.tower_steps)
    done = args.out / "tower" / "done.ckpt"
    first = args.seed * 10_000_000
    if done.is_file():
        tower.load_state_dict(torch.load(done, weights_only=False)["state_dict"])
    else:
        pool = draw_pool(world, args.out / "cards.npz", first, args.tower_cards, args.workers)
        seen = steps_done(args.out / "tower") // 2 * args.tower_batch
        cards = TowerCards(pool, processor, args.seed, seen, args.tower_steps * args.tower_batch)
        fit(tower, DataLoader(cards, args.tower_batch), args.out / "tower", 2 * args.tower_steps)

    plain = plain_rows(model, processor.tokenizer)
    model.requires_grad_(False)
    add_lora(model)
    model.model.multi_modal_projector.requires_grad_(True)
    align = AlignModule(model, plain, args.align_steps)
    done = args.out / "align" / "done.ckpt"
    if done.is_file():
        align.load_state_dict(torch.load(done, weights_only=False)["state_dict"], strict=False)
    else:
        seen = steps_done(args.out / "align") * args.align_batch
        cards = Dialogues(world, processor, first + 5_000_000 + seen, args.align_steps * args.align_batch)
        loader = DataLoader(cards, args.align_batch, num_workers=1, collate_fn=pad_dialogues)
        align.strict_loading = False
        fit(align, loader, args.out / "align", args.align_steps, clip=1.0)
    model.eval()
    state = {name: value.half().contiguous() for name, value in trained_state(model).items()}
    with written_whole(args.out / "smol_llava.safetensors") as draft:
        save_file(state, draft)
    accuracy = held_out_accuracy(model, processor, world, args.eval_cards)
    with written_whole(args.out / "accuracy.json") as draft:
        draft.write_text(json.dumps(accuracy, indent=2) + "\n")
    print(json.dumps(accuracy, indent=2))


if __name__ == "__main__":
    main()
