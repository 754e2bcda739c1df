"""PrivacyPair's test splits as questions of a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.records import PrivacyRecord
from lightning_neuralgate.tasks.item import BrokenItems, Place, TaskItem


def privacy_pair_items(
    splits: Mapping[str, Sequence[PrivacyRecord]], images: Path, broken: BrokenItems
) -> Iterator[TaskItem]:
    """All queries of some splits, sensitive and benign in turn; the edit's own split is left out.

    Args:
        splits: split name -> records.
        images: folder that the pictures' names are relative to.
        broken: takes what is broken; nothing is any more, since records are checked when they are read.
    """
    root = images.resolve()
    for split, records in splits.items():
        if split == "edit":
            continue
        for record in records:
            attributes = {
                query: attribute
                for pair in record.pairs
                for query, attribute in (
                    (pair.sensitive, pair.sensitive_attribute), (pair.benign, pair.benign_attribute)
                )
            }  # fmt: skip
            for number, row in enumerate(question_rows(record)):
                yield TaskItem(
                    task="privacy_pair",
                    item_id=f"{split}/{record.record_id}/{number:03d}",
                    picture=record.image,
                    image=record.image.resolve().relative_to(root).as_posix(),
                    prompt=row.query,
                    truth=row.truth or "",
                    fields={
                        "split": split,
                        "record": record.record_id,
                        "subject": record.subject,
                        "role": row.role,
                        "attribute": attributes[row.query],
                        "synonyms": list(row.synonyms),
                    },
                    group=f"{split}/{record.record_id}",
                    place=Place("PrivacyPair", f"record '{record.record_id}'"),
                )
