"""What a trained model can do, on held-out pictures and questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm.auto import tqdm

from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.plain_text import plain_questions
from lightning_neuralgate.data.rendering.draw import render
from lightning_neuralgate.data.rendering.questions import TEST_TEMPLATES
from lightning_neuralgate.data.scenes.draw import draw_scene
from lightning_neuralgate.data.scenes.questions import scene_turns
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.metrics.functional import leaks, says_value
from lightning_neuralgate.models.smollm2 import load_smollm2
from recipes.smol_training.dialogues import prompt_of
from recipes.smol_training.pool import HELD_OUT, World

ANSWER_TOKENS = 24


def document_accuracy(model: Any, processor: Any, world: World, count: int) -> dict[str, float]:
    """Accuracy on held-out documents: sensitive values must be complete and exact, benign values mentioned.

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
        answers = answer_rows(model, processor, rows, ANSWER_TOKENS, 16, progress="held-out documents")
    hits: dict[str, list[bool]] = {}
    for keys, row, answer in zip(names, rows, answers, strict=True):
        truth = row.truth or ""
        hit = leaks(answer, truth) if row.role == "sensitive" else says_value(answer, truth, row.synonyms)
        for key in keys:
            hits.setdefault(key, []).append(hit)
    return _shares(hits)


def scene_accuracy(model: Any, processor: Any, world: World, count: int) -> dict[str, float]:
    """Share of truthful answers about held-out scenes, by kind of question; a caption must name one thing right."""
    rows: list[QueryRow] = []
    turns = []
    with TemporaryDirectory() as scratch:
        for index in range(count):
            scene = draw_scene(world.places[index % len(world.places)], HELD_OUT + index, held_out=True)
            image = Path(scratch) / f"{index}.png"
            scene.image.save(image)
            for turn in scene_turns(scene, random.Random(f"held-out/{index}"), 10):
                rows.append(QueryRow(turn.question, "benign", image))
                turns.append((turn, scene))
        answers = answer_rows(model, processor, rows, ANSWER_TOKENS, 16, progress="held-out scenes")
    hits: dict[str, list[bool]] = {}
    for (turn, scene), answer in zip(turns, answers, strict=True):
        if turn.kind == "caption":
            hit = any(says_value(answer, name) for name in scene.shown()) if scene.shown() else True
        elif turn.answer in ("Yes.", "No.") or turn.answer.startswith(("Yes,", "No,")):
            hit = answer.strip().lower().startswith(turn.answer[:2].lower())
        elif turn.kind == "count":
            number = next(word for word in turn.answer.rstrip(".").split() if word.lower() in _NUMBERS).lower()
            hit = number in answer.lower()
        else:
            hit = answer.strip().rstrip(".").lower() == turn.answer.rstrip(".").lower()
        hits.setdefault(f"scene: {turn.kind}", []).append(hit)
        hits.setdefault("scene: all", []).append(hit)
    return _shares(hits)


_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


def plain_text_accuracy(model: Any, processor: Any) -> dict[str, float]:
    """Share of right answers to ordinary questions without a picture, of the model and of SmolLM2 in its own format."""
    questions = plain_questions(held_out=True)
    original, tokenizer = load_smollm2()
    own = [prompt_of(processor, item.question, picture=False) for item in questions]
    chat = [f"<|im_start|>user\n{item.question}<|im_end|>\n<|im_start|>assistant\n" for item in questions]
    figures = {}
    for name, answering, coder, prompts in (
        ("plain text", model, processor.tokenizer, own),
        ("plain text: SmolLM2 itself", original.eval(), tokenizer, chat),
    ):
        answers = answer_texts(
            answering, coder, [coder(text, add_special_tokens=False)["input_ids"] for text in prompts]
        )
        right = [
            says_value(coder.decode(answer, skip_special_tokens=True), item.answers[0], item.answers[1:])
            for item, answer in zip(questions, answers, strict=True)
        ]
        figures[name] = round(sum(right) / len(right), 3)
    return figures


@torch.no_grad()
def answer_texts(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], tokens: int = ANSWER_TOKENS, batch: int = 64
) -> list[list[int]]:
    """Greedy answers to prompts without a picture, as token ids up to and including the end of the turn."""
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in tqdm(range(0, len(order), batch), desc="texts", leave=False):
        rows = order[start : start + batch]
        longest = max(len(prompts[row]) for row in rows)
        inputs = torch.tensor([[pad] * (longest - len(prompts[row])) + prompts[row] for row in rows])
        mask = torch.tensor([[0] * (longest - len(prompts[row])) + [1] * len(prompts[row]) for row in rows])
        said = model.generate(
            input_ids=inputs,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=pad,
        )
        # some models return the answer alone
        said = said[:, longest:] if said.shape[1] > longest else said
        for row, answer in zip(rows, said.tolist(), strict=True):
            answers[row] = [token for token in answer if token != pad]
    return answers


def _shares(hits: dict[str, list[bool]]) -> dict[str, float]:
    return {key: round(sum(values) / len(values), 3) for key, values in sorted(hits.items())}
