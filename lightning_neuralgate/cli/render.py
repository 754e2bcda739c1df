"""`neuralgate render`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.data.rendered import (
    EDIT_SUBJECTS,
    RECORDS_NAME,
    UNSEEN_SUBJECTS,
    render_retention,
    render_splits,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Options of rendering."""
    add_config(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="Folder for records.jsonl, retention.jsonl and images/."
    )
    parser.add_argument("--seed", type=int, default=0, help="The same seed draws the same records.")
    parser.add_argument("--edit_records", type=int, default=10, help="Edit records per subject.")
    parser.add_argument("--test_records", type=int, default=20, help="Test records per subject.")
    parser.add_argument("--edit_pairs", type=int, default=5, help="Query pairs per edit record.")
    parser.add_argument("--test_pairs", type=int, default=5, help="Query pairs per test record.")
    parser.add_argument(
        "--subjects", type=Sequence[str], default=EDIT_SUBJECTS, help="Subjects to edit: shipped names or YAML files."
    )
    parser.add_argument("--unseen", type=Sequence[str], default=UNSEEN_SUBJECTS, help="Subjects kept for the end.")


def run(options: Namespace) -> None:
    """Draw the records."""
    splits = render_splits(
        options.out,
        options.seed,
        options.edit_records,
        options.test_records,
        options.edit_pairs,
        options.test_pairs,
        options.subjects,
        options.unseen,
    )
    render_retention(options.out, options.seed)
    sizes = ", ".join(f"{len(records)} {name}" for name, records in splits._asdict().items())
    print(f"{options.out / RECORDS_NAME}: {sizes} records")
