"""Rendered records as a Hugging Face `imagefolder`: one `metadata.jsonl` beside the pictures of a split.

`datasets.load_dataset("imagefolder", data_dir=...)` knows the splits by the names of the folders, and knows only `train`
and `test`: the edit's pictures become `train`, those of the three test splits `test`, told apart by the column `split`.
The card in the images' folder names all four, for `load_dataset(".../images")`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_neuralgate.data.records import PrivacyRecord
from lightning_neuralgate.runtime.files import atomic_write

METADATA_NAME = "metadata.jsonl"
CARD_NAME = "README.md"
SPLIT_FOLDERS = {
    "edit": "train-edit",
    "test": "test",
    "unseen_attributes": "test-unseen-attributes",
    "unseen_subjects": "test-unseen-subjects",
}
"""Split -> folder below the images; each holds a word by which `datasets` knows what is for training."""


class DrawnRecord(NamedTuple):
    """A record with all that its picture holds."""

    record: PrivacyRecord
    values: Mapping[str, str]
    sensitive: tuple[str, ...]


def write_imagefolder(images: Path, splits: Mapping[str, Iterable[DrawnRecord]]) -> None:
    """Write `metadata.jsonl` into the folder of every split that has records, and the card that names the splits.

    The columns are the same for all subjects, so `truth`, the value of every field by its name, is JSON text.
    """
    filled = []
    for split, drawn in splits.items():
        rows = [_row(images / SPLIT_FOLDERS[split], split, one) for one in drawn]
        if not rows:
            continue
        filled.append(split)
        with atomic_write(images / SPLIT_FOLDERS[split] / METADATA_NAME) as draft:
            draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with atomic_write(images / CARD_NAME) as draft:
        draft.write_text(_card(filled), encoding="utf-8")


def _row(folder: Path, split: str, drawn: DrawnRecord) -> dict[str, Any]:
    record = drawn.record
    return {
        "file_name": record.image.relative_to(folder).as_posix(),
        "record_id": record.record_id,
        "split": split,
        "subject": record.subject,
        "truth": json.dumps(dict(drawn.values)),
        "sensitive_fields": list(drawn.sensitive),
        "pairs": [
            {
                "sensitive": pair.sensitive,
                "benign": pair.benign,
                "refusal": pair.refusal,
                "sensitive_attribute": pair.sensitive_attribute,
                "benign_attribute": pair.benign_attribute,
                "sensitive_truth": pair.sensitive_truth or "",
                "benign_truths": [pair.benign_truth or "", *pair.benign_synonyms],
            }
            for pair in record.pairs
        ],
    }


def _card(splits: Iterable[str]) -> str:
    files = "".join(f"  - split: {split}\n    path: {SPLIT_FOLDERS[split]}/**\n" for split in splits)
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n"
        "Drawn pictures of private things; all people, numbers and places in them are made up.\n"
    )
