"""Render retention questions: ordinary questions whose answers an edit must not change, for its retention term."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from PIL import Image

from lightning_neuralgate.data.ordinary import OrdinaryQuestion, check_forms, ordinary_questions
from lightning_neuralgate.data.records import RetentionItem, write_retention
from lightning_neuralgate.data.rendering.dataset import EDIT_SUBJECTS, IMAGES_NAME, picture_seed, replacing
from lightning_neuralgate.data.rendering.draw import ordinary_picture
from lightning_neuralgate.data.rendering.questions import (
    ORDINARY_QUESTIONS,
    PICTURE_QUESTIONS,
    SHAPE_COLOUR_QUESTIONS,
    SHAPE_QUESTIONS,
    public_questions,
)
from lightning_neuralgate.runtime.written import update_folder

RETENTION_NAME = "retention.jsonl"
RetentionForms = Literal["all", "open"]
RETENTION_COUNTS: dict[RetentionForms, int] = {"all": 72, "open": 24}
"""Number of questions by default."""
_Named = tuple[str, RetentionItem, Image.Image | None]
"""Name of the picture's file, the item without its picture, and the picture."""


def check_retention(forms: RetentionForms, without: Collection[str]) -> None:
    """Check that forms can be left out.

    Raises:
        ValueError: one does not exist, none is left, or `forms` is `open`, which has one form.
    """
    if forms == "open" and without:
        raise ValueError("the retention questions are 'open' ones; forms can be left out of 'all' only")
    check_forms(without)


def render_retention(
    folder: Path,
    seed: int,
    forms: RetentionForms = "all",
    count: int | None = None,
    without: Collection[str] = (),
    subjects: Sequence[str | Path] = EDIT_SUBJECTS,
    more: Iterable[tuple[Image.Image, str]] = (),
) -> list[RetentionItem]:
    """Write questions whose answers an edit must not change to `retention.jsonl`, for the edit's retention term.

    Their targets are generated later, with the unedited model.

    Args:
        folder: output folder, created if missing.
        seed: seed of pictures and questions.
        forms: `all` for every ordinary form in turn (`ordinary_questions`). `open` for open questions about pictures of a
            shape: in the first half ordinary ones, every other one about the picture, in the second half for public
            attributes, such as the motif of a poster, built from the edit's own templates.
        count: number of questions; by default those of `RETENTION_COUNTS`.
        without: forms to leave out of `all`.
        subjects: edited subjects, whose benign attributes `all` asks for, too.
        more: further pictures with a question about each, such as those of `scene_retention`.

    Raises:
        ValueError: see `check_retention`.
        DataFormatError: a subject spec is invalid; a file would be replaced that no earlier call has written.
    """
    check_retention(forms, without)
    count = RETENTION_COUNTS[forms] if count is None else count
    if forms == "open":
        drawn = _open_questions(seed, count)
    else:
        drawn = _in_all_forms(ordinary_questions(seed, count, without, subjects))
    further = ((f"scene-{index}", RetentionItem(query=text), image) for index, (image, text) in enumerate(more))
    items = []
    with replacing(folder, RETENTION_NAME), update_folder(folder, RETENTION_NAME) as draft:
        (draft / IMAGES_NAME).mkdir()
        for name, item, image in chain(drawn, further):
            if image is None:
                items.append(item)
                continue
            image.save(draft / IMAGES_NAME / f"{name}.png", format="PNG")
            items.append(item.model_copy(update={"image": draft / IMAGES_NAME / f"{name}.png"}))
        write_retention(draft / RETENTION_NAME, items, draft)
    return [
        item if item.image is None else item.model_copy(update={"image": folder / IMAGES_NAME / item.image.name})
        for item in items
    ]


def _open_questions(seed: int, count: int) -> Iterator[_Named]:
    rng = random.Random(f"retention/{seed}")
    about_pictures = [*PICTURE_QUESTIONS, *SHAPE_QUESTIONS, *SHAPE_COLOUR_QUESTIONS]
    public = public_questions(count // 2, random.Random(f"public/{seed}"))
    ordinary = [
        rng.choice(about_pictures if index % 2 == 0 else ORDINARY_QUESTIONS) for index in range(count - len(public))
    ]
    for name, series, questions in (("ordinary", "retention", ordinary), ("public", "public", public)):
        for index, question in enumerate(questions):
            image = ordinary_picture(picture_seed(seed, series, index))[0]
            yield f"{name}-{index}", RetentionItem(query=question), image


def _in_all_forms(questions: Iterable[OrdinaryQuestion]) -> Iterator[_Named]:
    for index, (form, question, image, earlier) in enumerate(questions):
        yield f"{form.replace('_', '-')}-{index}", RetentionItem(query=question, earlier=earlier), image
