"""POPE: yes/no questions about objects, as JSON lines or parquet."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.metrics.functional.forms import AnswerForm
from lightning_neuralgate.metrics.functional.pope import pope_tally, pope_verdict
from lightning_neuralgate.tasks.benchmarks.base import (
    YES_OR_NO,
    Benchmark,
    TallyParts,
    TallySettings,
    checked_truth,
    refused_flags,
    yes_no_verdict,
)
from lightning_neuralgate.tasks.item import BrokenItems, TaskItem
from lightning_neuralgate.tasks.questions import Source
from lightning_neuralgate.tasks.sources import Row, read_rows

CATEGORIES = ("random", "popular", "adversarial")
SUFFIX = " Please answer yes or no."
"""Appended to every question, as in the paper; POPE's own files lack it."""
_MAX_DIGITS = 18
"""Longer question ids stay text in exports, because other tools read them so."""


def read_pope(
    source: str | Path,
    broken: BrokenItems,
    images: Path | None = None,
    categories: Collection[str] = ("random",),
) -> Iterator[TaskItem]:
    """Yield POPE's questions.

    Two formats are supported: POPE's own JSON lines (`question_id, image, text, label`), with the category in the file name
    (`coco_pope_random.json`), and the hub's parquet (`question_id, question, answer, image_source, image, category`).

    Args:
        source: a file, a folder of files, or a dataset on the hub, see `sources.read_rows`.
        broken: collects broken rows.
        images: folder of the pictures that JSON lines name.
        categories: the categories to read; rows without a category are always read. The paper uses `random`.

    Raises:
        DataFormatError: an unknown category, or no question of the requested ones.
    """
    wanted = set(categories)
    if unknown := wanted - set(CATEGORIES):
        raise DataFormatError(f"POPE has the categories {', '.join(CATEGORIES)}, not {', '.join(sorted(unknown))}")
    others: set[str] = set()
    found = False
    for item in broken.parse_all(read_rows(source, broken, images), _item):
        if item.fields["category"] in wanted or not item.fields["category"]:
            found = True
            yield item
        else:
            others.add(item.fields["category"])
    if others and not found:
        raise DataFormatError(
            f"{source} has no question of POPE's {' or '.join(sorted(wanted))}, only of {', '.join(sorted(others))}; "
            "choose others with --sources.pope_categories"
        )


def _item(row: Row) -> TaskItem:
    question = row.text("text", "question").strip()
    category = str(row.values.get("category") or next((name for name in CATEGORIES if name in row.source_name), ""))
    if category not in (*CATEGORIES, ""):
        raise row.place.error(f"field 'category' is {category[:80]!r}; POPE has {', '.join(CATEGORIES)}")
    number = row.text("question_id")
    name = f"{category or row.source_name}/{number}"
    image = row.values.get("image_source") or row.values.get("image")
    return TaskItem(
        task="pope",
        item_id=name,
        picture=row.picture(),
        image=image if isinstance(image, str) else name,
        prompt=question if question.endswith(SUFFIX.strip()) else question + SUFFIX,
        truth=row.one_of("label" if "label" in row.values else "answer", ("yes", "no")),
        fields={"category": category, "question_id": number, "question": question},
        group=name,
        place=row.place,
    )


@dataclass(frozen=True)
class PopeSource:
    """Where POPE is.

    Attributes:
        pope: POPE's JSON lines or parquet.
        pope_images: folder of the pictures that POPE's JSON lines name.
        pope_categories: of random, popular, adversarial; the paper uses random.
    """

    pope: str | None = None
    pope_images: Path | None = None
    pope_categories: Sequence[str] = ("random",)


class PopeTally(TallyParts):
    """Tally by POPE's rule."""

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        """See `TaskTally`."""
        truths = [checked_truth(answer, YES_OR_NO) for answer in answers]
        tally = pope_tally([answer.answer for answer in answers], truths, refused_flags(refused))
        self.parts.append(replace(tally, names=tuple(answer.item_id for answer in answers)))


class Pope(Benchmark):
    """POPE, scored by its official rule."""

    name = "pope"
    protocol = "POPE's official rule"
    shown = ("accuracy", "precision", "recall", "f1", "yes_ratio", "refused", "unparsed", "refusal_aware_accuracy")
    source_options = PopeSource
    has_export = True

    def source(self, options: Any, data: DataOptions) -> Source:
        categories = tuple(options.pope_categories)
        return partial(read_pope, self.named_source(options), images=options.pope_images, categories=categories)

    def mini_sources(self, folder: Path) -> dict[str, Any]:
        return {**super().mini_sources(folder), "pope_images": folder / "images", "pope_categories": CATEGORIES}

    def new_tally(self, settings: TallySettings) -> PopeTally:
        return PopeTally()

    def form(self, answer: AnsweredItem) -> tuple[AnswerForm, Sequence[str]]:
        return "yes_no", ()

    def verdict(self, answer: AnsweredItem) -> str:
        return yes_no_verdict(pope_verdict(answer.answer), answer.truth)

    def export(self, answer: AnsweredItem) -> Iterator[tuple[Path, str]]:
        """Yield lines as POPE's `evaluate.py` reads them.

        `pope/<category>_answers.jsonl` (`question_id, question, answer`) and `pope/<category>_labels.jsonl` (`question_id,
        image, text, label`), line by line in the same order.
        """
        category = answer.field_in("category", (*CATEGORIES, "")) or "pope"
        number, question = answer.field("question_id", str), answer.field("question", str)
        question_id: int | str = int(number) if number.isdecimal() and len(number) <= _MAX_DIGITS else number
        said = {"question_id": question_id, "question": question, "answer": answer.answer}
        label = {"question_id": question_id, "image": answer.image, "text": question, "label": answer.truth}
        yield Path("pope") / f"{category}_answers.jsonl", json.dumps(said)
        yield Path("pope") / f"{category}_labels.jsonl", json.dumps(label)
