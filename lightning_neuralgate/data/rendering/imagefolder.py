"""Write rendered records as a Hugging Face `imagefolder`: one `metadata.jsonl` per folder of pictures.

`datasets.load_dataset("imagefolder", data_dir=...)` derives the splits from folder names, and only knows `train`,
`validation` and `test`. The edit's pictures therefore become `train`; those of the three test splits become `test`, with the
split in the column `split`. The dataset card in the images folder declares the splits that have records, for
`load_dataset(".../images")`.
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
    "validation": "validation",
}
"""Split -> subfolder of the images; `datasets` recognizes the words `train`, `validation` and `test` in the names."""


class RenderedRecord(NamedTuple):
    """A record with the values of all fields in its picture, and the names of the sensitive ones."""

    record: PrivacyRecord
    values: Mapping[str, str]
    sensitive: tuple[str, ...]


def write_imagefolder(images: Path, splits: Mapping[str, Iterable[RenderedRecord]]) -> None:
    """Write `metadata.jsonl` into the folder of each split that has records, and a dataset card that declares the splits.

    All subjects share the same columns, so the column `truth`, a mapping of field names to values, is JSON text.
    """
    written = []
    for split, rendered in splits.items():
        rows = [_row(images / SPLIT_FOLDERS[split], split, item) for item in rendered]
        if not rows:
            continue
        written.append(split)
        with atomic_write(images / SPLIT_FOLDERS[split] / METADATA_NAME) as draft:
            draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with atomic_write(images / CARD_NAME) as draft:
        draft.write_text(_card(written), encoding="utf-8")


def _row(folder: Path, split: str, rendered: RenderedRecord) -> dict[str, Any]:
    record = rendered.record
    return {
        "file_name": record.image.relative_to(folder).as_posix(),
        "record_id": record.record_id,
        "split": split,
        "subject": record.subject,
        "truth": json.dumps(dict(rendered.values)),
        "sensitive_fields": list(rendered.sensitive),
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
