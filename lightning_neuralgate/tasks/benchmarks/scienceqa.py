"""Read ScienceQA-IMG: multiple choice about pictures, as parquet or JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_neuralgate.metrics.functional.scienceqa import OPTIONS
from lightning_neuralgate.tasks.item import BrokenItems, TaskItem
from lightning_neuralgate.tasks.sources import Row, rows_of

INSTRUCTION = "Answer with the option's letter from the given choices directly."


def read_scienceqa(source: str | Path, broken: BrokenItems, images: Path | None = None) -> Iterator[TaskItem]:
    """Questions of ScienceQA that have a picture, one at a time; those without are passed over.

    A row has `image, question, choices, answer` (the right choice's place, from 0) and may have `hint`, `subject`, `topic`.
    The prompt is the hint, the question, the choices as `A. ...` a line each, and LLaVA's instruction to say the letter.

    Args:
        source: a file, a folder of files, or a data set on the hub, see `sources.rows_of`.
        broken: takes the broken ones.
        images: folder of the pictures that JSON lines name.
    """
    numbered = _numbered(source, broken, images)
    return broken.passing((pair for pair in numbered if pair[1].values.get("image") is not None), _item)


def _numbered(source: str | Path, broken: BrokenItems, images: Path | None) -> Iterator[tuple[int, Row]]:
    """Rows with how many stand before each, broken ones included, so that skipping those renames none."""
    unread = BrokenItems(broken.on_broken, broken.task)
    moved = 0
    for number, row in enumerate(rows_of(source, unread, images)):
        broken.skipped += unread.skipped[moved:]
        moved = unread.count
        yield number + moved, row
    broken.skipped += unread.skipped[moved:]


def _item(numbered: tuple[int, Row]) -> TaskItem:
    number, row = numbered
    choices: Any = row.values.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise row.place.broken(f"field 'choices' has to be a list of texts, found {str(choices)[:80]}")
    if not 1 <= len(choices) <= len(OPTIONS):
        raise row.place.broken(f"{len(choices)} choices; LLaVA's rule knows 1 to {len(OPTIONS)}")
    answer: Any = row.values.get("answer")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise row.place.broken(f"field 'answer' has to be from 0 to {len(choices) - 1}, found {answer!r}")
    hint = str(row.values.get("hint") or "").strip()
    listed = [f"{letter}. {choice}" for letter, choice in zip(OPTIONS, choices, strict=False)]
    name = str(row.values.get("id") or f"{row.file}/{number:06d}")
    return TaskItem(
        task="scienceqa",
        item_id=name,
        picture=row.picture(),
        image=name,
        prompt="\n".join([*([hint] if hint else []), row.text("question").strip(), *listed, INSTRUCTION]),
        truth=OPTIONS[answer],
        fields={"choices": choices, "subject": str(row.values.get("subject") or "")},
        group=name,
        place=row.place,
    )
