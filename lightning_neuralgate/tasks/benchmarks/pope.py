"""Read POPE: yes/no questions about objects, as JSON lines or parquet."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.tasks.item import BrokenItems, TaskItem
from lightning_neuralgate.tasks.sources import Row, rows_of

CATEGORIES = ("random", "popular", "adversarial")
SUFFIX = " Please answer yes or no."
"""Behind every question, as the paper has it; POPE's own files do without."""


def read_pope(
    source: str | Path,
    broken: BrokenItems,
    images: Path | None = None,
    categories: Collection[str] = ("random",),
) -> Iterator[TaskItem]:
    """Questions of POPE, one at a time.

    Two forms are known: POPE's own JSON lines (`question_id, image, text, label`), whose category stands in the file's name
    (`coco_pope_random.json`), and the hub's parquet (`question_id, question, answer, image_source, image, category`).

    Args:
        source: a file, a folder of files, or a data set on the hub, see `sources.rows_of`.
        broken: takes the broken ones.
        images: folder of the pictures that JSON lines name.
        categories: which categories; rows that name none are read in any case. The paper uses `random`.
    """
    wanted = set(categories)
    if unknown := wanted - set(CATEGORIES):
        raise DataFormatError(f"POPE has the categories {', '.join(CATEGORIES)}, not {', '.join(sorted(unknown))}")
    others: set[str] = set()
    found = False
    for item in broken.passing(rows_of(source, broken, images), _item):
        if item.fields["category"] in wanted or not item.fields["category"]:
            found = True
            yield item
        else:
            others.add(item.fields["category"])
    if others and not found:
        raise DataFormatError(
            f"{source} has no question of POPE's {' or '.join(sorted(wanted))}, only of {', '.join(sorted(others))}; "
            "name others by --sources.pope_categories"
        )


def _item(row: Row) -> TaskItem:
    question = row.text("text", "question").strip()
    category = str(row.values.get("category") or next((name for name in CATEGORIES if name in row.file), ""))
    if category not in (*CATEGORIES, ""):
        raise row.place.broken(f"field 'category' is {category[:80]!r}; POPE has {', '.join(CATEGORIES)}")
    number = row.text("question_id")
    name = f"{category or row.file}/{number}"
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
