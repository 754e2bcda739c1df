"""Train the vision tower, projector and LoRA adapter of an embedded model, `smol-llava` or `smol-minigpt`.

    python recipes/train_smol_llava.py --out runs/smol-llava
    python recipes/train_smol_llava.py --model smol-minigpt --out runs/smol-minigpt

Four stages, each checkpointed about every minute; an interrupted run resumes when the same command is started again. The
tower starts from the shipped weights, unless `--from-scratch` is given, the adapter anew, unless `--keep-adapter` is given.
1. tower: trains on rendered documents and scenes, rendered once and shifted at random. Dense losses predict the characters
   and the objects under each patch; the projector learns to map each patch to the embedding of a word or character.
2. matching: the adapter learns to find things, on the exact embeddings that the projector is trained to output.
3. words: the same for all kinds of questions.
4. align: projector and adapter learn answers on newly rendered pictures; the tower stays as it is.

In stages 2 to 4 each picture has many independent questions, and the model keeps the original language model's distribution
over its own answers to texts.

`smol-minigpt` has 25 image tokens of four patches each; its tower has two more layers, which sort characters and objects
into reading order. From scratch it starts from the shipped `smol-llava`.

Finally figures on held-out pictures and texts are printed and the weights are written to `OUT/`; copy them to
`lightning_neuralgate/models/assets/` to ship them. To print the figures of the shipped weights:

    python recipes/train_smol_llava.py --eval-shipped
    python recipes/train_smol_llava.py --model smol-minigpt --eval-shipped
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from lightning_neuralgate.data.plain_text import plain_prompts, plain_questions
from lightning_neuralgate.models.smol import PATCH_SIZE, SMOL_LLAVA, EmbeddedModel, add_lora, trained_state
from lightning_neuralgate.models.smol_minigpt import SMOL_MINIGPT
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.tasks.mini import mini_questions
from recipes.smol_training.align import AlignModule, original_answers
from recipes.smol_training.dialogues import Dialogues, collate
from recipes.smol_training.evaluation import document_accuracy, plain_text_accuracy, scene_accuracy
from recipes.smol_training.fitting import fit, load_stage, steps_done
from recipes.smol_training.ordered import (
    OrderedPictures,
    OrderedTowerModule,
    ordered_labels,
    start_from_smol_llava,
)
from recipes.smol_training.pool import Picture, TowerPictures, World, draw_pool, picture_arrays
from recipes.smol_training.tower import TowerModule, resize_positions
from recipes.smol_training.words import WordTargets, patch_labels


class Plan(NamedTuple):
    """Training settings of an embedded model."""

    model: EmbeddedModel
    tower_steps: int
    matching_steps: int
    words_steps: int
    align_steps: int
    separator: str
    """Text between an answer and the next question."""


PLANS = {
    "smol-llava": Plan(SMOL_LLAVA, 5500, 60, 250, 250, "\n"),
    "smol-minigpt": Plan(SMOL_MINIGPT, 1500, 60, 150, 300, ""),
}
ADAPTER_STAGES = {"matching": 2e-3, "words": 1.5e-3, "align": 1e-3}
"""Stages of the adapter, with their learning rates."""
NOISE = 0.3
"""Noise on exact embeddings, in units of their standard deviation."""
TEST_SEEDS = range(3)
"""Seeds of the mini sets whose questions must not occur in training."""
TEXTS = 1200
"""Ordinary prompts without a picture."""
SCRATCH_STEPS = 2
"""Factor on the tower's steps from scratch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PLANS, default="smol-llava")
    parser.add_argument("--out", type=Path, help="default: runs/MODEL")
    parser.add_argument("--eval-shipped", action="store_true", help="only print the figures of the shipped weights")
    parser.add_argument("--from-scratch", action="store_true", help="do not start from the shipped weights")
    parser.add_argument(
        "--keep-adapter",
        action="store_true",
        help="go on with the shipped adapter; stages matching and words only if their steps are given; give another --seed "
        "for new pictures",
    )
    parser.add_argument("--pictures", type=int, default=40_000, help="pictures that the tower is trained on")
    parser.add_argument("--pool", type=Path, help="file of these pictures, rendered if missing; default: OUT/pool.npz")
    parser.add_argument("--tower-steps", type=int, help="default: depends on the model; 0 keeps the shipped tower")
    parser.add_argument("--tower-batch", type=int, default=32)
    for stage in ADAPTER_STAGES:
        parser.add_argument(f"--{stage}-steps", type=int, help="default: depends on the model")
    parser.add_argument("--align-batch", type=int, default=5, help="pictures per step, each with 11 questions")
    parser.add_argument("--workers", type=int, default=2, help="processes that render pictures")
    parser.add_argument(
        "--eval-pictures", type=int, default=10, help="held-out documents per subject; ten times as many scenes"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    plan = PLANS[args.model]
    out = args.out or Path("runs") / args.model
    L.seed_everything(args.seed)
    world = World()
    if args.eval_shipped:
        print(json.dumps(figures(*plan.model.build(), world, args.eval_pictures), indent=2))
        return
    model, processor = plan.model.assemble()
    train_tower(args, plan, out, model, processor, world)
    train_adapter(args, plan, out, model, processor, world)
    model.eval()
    state = {name: value.half().contiguous() for name, value in trained_state(model).items()}
    with atomic_write(out / plan.model.weights.name) as draft:
        save_file(state, draft)
    measured = figures(*plan.model.build(out / plan.model.weights.name), world, args.eval_pictures)
    with atomic_write(out / "figures.json") as draft:
        draft.write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))


def train_tower(args: Any, plan: Plan, out: Path, model: Any, processor: Any, world: World) -> None:
    """Stage 1; changes the model in place."""
    steps = args.tower_steps
    if steps is None:
        steps = plan.tower_steps * (SCRATCH_STEPS if args.from_scratch else 1)
    ordered = plan.model is SMOL_MINIGPT
    module_class = OrderedTowerModule if ordered else TowerModule
    model.model.vision_tower.set_attn_implementation("eager")  # faster than sdpa on CPUs, for so few patches
    peak = 1.0 if args.from_scratch and not ordered else 0.6
    module = module_class(model, processor.tokenizer, world, steps, peak)
    if load_stage(module, out / "tower"):
        return
    if steps == 0:
        load_shipped(plan, model, "vision_tower", "multi_modal_projector")
        return
    vision = model.config.vision_config
    pool = draw_pool(
        world, args.pool or out / "pool.npz", args.seed * 10_000_000, args.pictures, args.workers, vision.image_size
    )
    seen = steps_done(out / "tower") // 2 * args.tower_batch
    grid = vision.image_size // vision.patch_size
    parts: tuple[Any, ...] = (world, pool, processor, args.seed, seen, steps * args.tower_batch, grid)
    data = OrderedPictures(*parts, tokens=model.config.image_seq_length) if ordered else TowerPictures(*parts)
    if not args.from_scratch:
        state = {k: v.float() for k, v in load_file(plan.model.weights).items() if "lora_" not in k}
        if not ordered:
            resize_positions(state, vision.image_size // PATCH_SIZE)
        model.load_state_dict(state, strict=False)
    elif ordered:
        start_from_smol_llava(
            model, torch.stack([data[index]["pixels"] for index in range(64)]), load_file(SMOL_LLAVA.weights)
        )
    fit(module, DataLoader(data, args.tower_batch), out / "tower", 2 * steps, every=100)


def load_shipped(plan: Plan, model: Any, *parts: str) -> None:
    """Load those shipped tensors into a model whose names contain one of the parts."""
    shipped = load_file(plan.model.weights)
    state = {name: value.float() for name, value in shipped.items() if any(part in name for part in parts)}
    model.load_state_dict(state, strict=False)


def train_adapter(args: Any, plan: Plan, out: Path, model: Any, processor: Any, world: World) -> None:
    """Stages 2 to 4; changes the model in place, which has LoRA layers afterwards."""
    model.requires_grad_(False)
    held_out = test_questions()
    prompts = [prompt for prompt in plain_prompts(args.seed) if prompt not in held_out][:TEXTS]
    texts = original_answers(model, processor.tokenizer, prompts, out / "texts.safetensors")
    add_lora(model)
    embed = ExactEmbeddings(plan, model, processor, world)
    if args.keep_adapter:
        load_shipped(plan, model, "lora_")
    for number, (stage, rate) in enumerate(ADAPTER_STAGES.items(), start=5):
        exact = stage != "align"
        wanted = getattr(args, f"{stage}_steps")
        if args.keep_adapter and exact and not wanted:
            continue
        model.model.multi_modal_projector.requires_grad_(not exact)
        steps = wanted or getattr(plan, f"{stage}_steps")
        module = AlignModule(model, processor, texts, steps, rate=rate)
        module.strict_loading = False
        if load_stage(module, out / stage, strict=False):
            continue
        seen = steps_done(out / stage) * args.align_batch
        rows = Dialogues(
            world, processor, args.seed * 100_000_000 + number * 1_000_000 + seen, steps * args.align_batch,
            model.config.image_seq_length, plan.separator, held_out=held_out, embed=embed if exact else None,
            matching=stage == "matching",
        )  # fmt: skip
        loader = DataLoader(rows, args.align_batch, num_workers=1, collate_fn=collate)
        fit(module, loader, out / stage, steps, clip=1.0, every=20)


class ExactEmbeddings:
    """The embeddings that the projector is trained to output for a picture, with some noise."""

    def __init__(self, plan: Plan, model: Any, processor: Any, world: World) -> None:
        embeddings = model.get_input_embeddings().weight.detach()
        self.targets = WordTargets(embeddings, processor.tokenizer, world)
        self.world, self.tokens, self.ordered = world, model.config.image_seq_length, plan.model is SMOL_MINIGPT

    def __call__(self, picture: Picture) -> Tensor:
        characters, regions = picture_arrays(picture)
        if self.ordered:
            labels = ordered_labels(self.world, characters, regions, self.tokens)
        else:
            labels = patch_labels(self.world, characters, regions, round(self.tokens**0.5))
        exact = self.targets(labels)
        return (exact + NOISE * torch.randn_like(exact)) * self.targets.scale


def test_questions() -> set[str]:
    """Questions of the mini sets and of the plain facts for tests, which training must not contain."""
    drawn = {question for seed in TEST_SEEDS for _, question in mini_questions(seed)}
    return drawn | {item.question for item in plain_questions(held_out=True)}


def figures(model: Any, processor: Any, world: World, count: int) -> dict[str, float]:
    """All figures of `evaluation.py`."""
    parts = (
        partial(document_accuracy, model, processor, world, count),
        partial(scene_accuracy, model, processor, world, 10 * count),
        partial(plain_text_accuracy, model, processor),
    )
    return {name: figure for part in parts for name, figure in part().items()}


if __name__ == "__main__":
    main()
