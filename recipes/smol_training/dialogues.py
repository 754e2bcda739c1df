"""Training rows of stage 2: several independent questions about a picture, packed behind its image tokens."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_neuralgate.data.rendering.questions import (
    EDIT_TEMPLATES,
    PICTURE_QUESTIONS,
    PUBLIC_ATTRIBUTES,
    PUBLIC_THINGS,
    SHAPE_COLOUR_QUESTIONS,
    SHAPE_QUESTIONS,
    TRAINING_TEMPLATES,
)
from lightning_neuralgate.data.scenes.questions import Turn, document_listing, document_turns, listing, scene_turns
from recipes.smol_training.pool import Picture, World, draw_picture

IGNORED = -100
END = "<|im_end|>"
MATCHING = frozenset({
    "existence", "choice_shown", "choice_count", "choice_colour", "count", "count_yes_no", "colour", "colour_yes_no",
    "colour_existence", "position", "side", "relation",
})  # fmt: skip
"""Kinds of questions that are answered by finding a word of the question among the image tokens, or what is next to it."""
WEIGHTS = {
    "relation": 6.0, "choice_side": 5.0, "side": 4.0, "position": 2.0, "choice_count": 2.0, "choice_shown": 2.0,
    "choice_colour": 2.0, "choice_category": 2.0, "read": 2.0, "existence": 0.6, "category": 0.6, "colour": 0.6,
    "colour_yes_no": 0.6, "caption": 0.4,
}  # fmt: skip
"""How likely a question about a scene is, by kind; 1 for other kinds. What takes longest to learn occurs most often."""
CHAT_SHARE = 0.25
"""Share of the segments that are chats of two questions."""
LISTING_SHARE = 0.3
"""Share of the scenes with a request to list everything."""


class Dialogues(Dataset):
    """Pictures with questions; item `index` has the seed `first + index`.

    A row holds the tokens before the question and the image tokens once (the prefix), then segments, each with one
    question and answer or a chat of two. A segment sees the prefix and itself only; its positions follow those of the prefix.

    Args:
        world: the classes.
        processor: processor of the model.
        first: first seed.
        count: number of pictures.
        tokens: image tokens per picture.
        separator: text between an answer and the next question of a chat.
        held_out: questions that must not occur.
        questions: questions per picture, apart from the request to list everything in it, whose answer holds the most facts.
        embed: function of a picture that returns the embeddings of its image tokens, which then take the place of its pixels.
        matching: only scenes, and questions of the kinds `MATCHING`.
    """

    templates = TRAINING_TEMPLATES + EDIT_TEMPLATES

    def __init__(
        self,
        world: World,
        processor: Any,
        first: int,
        count: int,
        tokens: int,
        separator: str,
        held_out: Collection[str] = (),
        questions: int = 10,
        embed: Callable[[Picture], Tensor] | None = None,
        matching: bool = False,
    ) -> None:
        self.world, self.processor, self.first, self.count = world, processor, first, count
        self.tokens, self.separator, self.held_out, self.questions = tokens, separator, set(held_out), questions
        self.embed, self.matching = embed, matching

    def __len__(self) -> int:
        return self.count

    def turns(self, picture: Picture, seed: int) -> list[Turn]:
        """Questions and answers about a picture.

        Raises:
            RuntimeError: one of them is a question of the tests.
        """
        rng = random.Random(f"turns/{seed}")
        if picture.scene is not None and self.matching:
            turns = scene_turns(picture.scene, rng, self.questions, MATCHING)
        elif picture.scene is not None:
            drawn = {turn.question: turn for turn in scene_turns(picture.scene, rng, 4 * self.questions)}.values()
            # a weighted sample without replacement
            turns = sorted(drawn, key=lambda turn: rng.random() ** (1 / WEIGHTS.get(turn.kind, 1.0)))[-self.questions :]
            rng.shuffle(turns)
            if rng.random() < LISTING_SHARE:
                turns.append(listing(picture.scene, rng))
        elif picture.spec is not None:
            turns = document_turns(picture.spec, picture.values, self.templates, rng, self.questions)
            turns.append(document_listing(picture.spec, picture.values, rng))
        else:
            turns = shape_turns(picture.facts, rng)
        for turn in turns:
            if self.held_out & {turn.question, stem(turn.question)}:
                raise RuntimeError(
                    f"the question {turn.question!r} of the tests is in the training data; change its wording"
                )
        return turns

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        seed = self.first + index
        picture = draw_picture(self.world, seed, only_scenes=self.matching)
        turns = self.turns(picture, seed)
        rng = random.Random(f"chats/{seed}")
        chats: list[list[Turn]] = []
        while turns:
            length = 2 if rng.random() < CHAT_SHARE and len(turns) > 1 else 1
            chats.append(turns[:length])
            turns = turns[length:]
        row = pack(self.processor, self.tokens, chats, self.separator)
        if self.embed is not None:
            return {"features": self.embed(picture), **row}
        pixels = self.processor.image_processor(picture.image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, **row}


def stem(question: str) -> str:
    """The question without its choices and without the request for yes or no."""
    return re.sub(r"( Yes or no\?| [A-Z(][^.?]*yes[ /]?(or|and)?[ /]?no.*)$", "", question.split("\n")[0])


def shape_turns(facts: dict[str, str], rng: random.Random) -> list[Turn]:
    """Questions about a picture of a shape, also in the wording of the edit's queries."""
    colour, shape = facts["colour"], facts["shape"]
    public = [
        Turn(
            "public",
            rng.choice(Dialogues.templates).format(attribute=attribute, subject=thing),
            f"The {attribute} is {colour}." if attribute.endswith("colour") else f"The {attribute} is a {shape}.",
        )
        for attribute, thing in zip(rng.sample(PUBLIC_ATTRIBUTES, 3), rng.sample(PUBLIC_THINGS, 3), strict=True)
    ]
    return [
        Turn("shape", rng.choice(SHAPE_QUESTIONS), f"The shape is a {shape}."),
        Turn("colour", rng.choice(SHAPE_COLOUR_QUESTIONS), f"The shape is {colour}."),
        Turn("caption", rng.choice(PICTURE_QUESTIONS), f"A {colour} {shape}."),
        Turn("existence", f"Is there a {shape} here? Yes or no?", "Yes."),
        *public,
    ]


def prompt_of(processor: Any, question: str, picture: bool) -> str:
    """Format a question with the chat template of the model."""
    content = [{"type": "image"}] * picture + [{"type": "text", "text": question}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return text


def pack(processor: Any, tokens: int, chats: Sequence[Sequence[Turn]], separator: str) -> dict[str, Tensor]:
    """Tokens of a prefix and its segments.

    Returns:
        `ids` and `labels` (T), `positions` (T), and `segments` (T): 0 for the prefix, then 1, 2, ...
    """
    tokenizer = processor.tokenizer

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    before, _ = prompt_of(processor, "\u0001", picture=True).split("\u0001")
    prefix = encode(before.replace(processor.image_token, processor.image_token * tokens))
    ids, labels = list(prefix), [IGNORED] * len(prefix)
    positions, segments = list(range(len(prefix))), [0] * len(prefix)
    for number, chat in enumerate(chats, start=1):
        own: list[int] = []
        wanted: list[int] = []
        for turn, (_, question, answer) in enumerate(chat):
            prompt = prompt_of(processor, question, picture=turn == 0)
            prompt_ids = encode(prompt[len(before) :] if turn == 0 else separator + prompt)
            answer_ids = encode(f"{answer}{END}")
            own += prompt_ids + answer_ids
            wanted += [IGNORED] * len(prompt_ids) + answer_ids
        ids += own
        labels += wanted
        positions += range(len(prefix), len(prefix) + len(own))
        segments += [number] * len(own)
    return {
        "ids": torch.tensor(ids), "labels": torch.tensor(labels), "positions": torch.tensor(positions),
        "segments": torch.tensor(segments),
    }  # fmt: skip


def pack_texts(processor: Any, pairs: Sequence[tuple[str, Sequence[int]]]) -> dict[str, Tensor]:
    """Pack questions without a picture, each with the token ids of an answer, as in `pack` but without a prefix."""
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    for number, (question, answer) in enumerate(pairs, start=1):
        prompt_ids = processor.tokenizer(prompt_of(processor, question, picture=False), add_special_tokens=False)[
            "input_ids"
        ]
        ids += [*prompt_ids, *answer]
        labels += [IGNORED] * len(prompt_ids) + list(answer)
        positions += range(len(prompt_ids) + len(answer))
        segments += [number] * (len(prompt_ids) + len(answer))
    return {
        "ids": torch.tensor(ids), "labels": torch.tensor(labels), "positions": torch.tensor(positions),
        "segments": torch.tensor(segments),
    }  # fmt: skip


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batch rows, padded on the right.

    Returns:
        `ids`, `labels`, `positions`, `segments` (B, T), `mask` (B, 1, T, T), True where a token may look at another, and
        `pixel_values` or `features`.
    """
    longest = max(len(row["ids"]) for row in rows)

    def padded(key: str, value: int) -> Tensor:
        return torch.stack(
            [torch.nn.functional.pad(row[key], (0, longest - len(row[key])), value=value) for row in rows]
        )

    segments = padded("segments", -1)
    same = segments[:, None, :, None] == segments[:, None, None, :]
    prefix = (segments == 0)[:, None, None, :] & (segments >= 0)[:, None, :, None]
    mask = (same | prefix) & torch.ones(longest, longest, dtype=torch.bool).tril()
    batch = {
        "ids": padded("ids", 0), "labels": padded("labels", IGNORED), "positions": padded("positions", 0),
        "segments": segments, "mask": mask,
    }  # fmt: skip
    for key in {"pixel_values", "features"} & rows[0].keys():
        batch[key] = torch.stack([row[key] for row in rows])
    return batch
