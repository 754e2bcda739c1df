"""`neuralgate render`: synthetic records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.data.records import RECORDS_NAME
from lightning_neuralgate.data.rendering.contact_sheet import write_contact_sheets
from lightning_neuralgate.data.rendering.dataset import (
    EDIT_SUBJECTS,
    RETENTION_NAME,
    UNSEEN_SUBJECTS,
    file_name_of,
    render_retention,
    render_splits,
)
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.run_folder import UNFINISHED, run_folder
from lightning_neuralgate.runtime.written import check_written


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate render`."""
    add_config(parser)
    parser.add_argument(
        "--out",
        type=Path | None,
        help="Output folder for records.jsonl, retention.jsonl, images/, authors/ and a contact sheet per subject.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed; the same seed renders the same records.")
    parser.add_argument("--edit_records", type=int, default=10, help="Edit records per subject.")
    parser.add_argument("--test_records", type=int, default=20, help="Test records per subject.")
    parser.add_argument("--edit_pairs", type=int, default=5, help="Query pairs per edit record.")
    parser.add_argument("--test_pairs", type=int, default=5, help="Query pairs per test record.")
    parser.add_argument(
        "--subject_spec",
        "--subject-spec",
        action="append",
        default=[],
        help="YAML file of a custom subject, used instead of --subjects. Can be repeated.",
    )
    parser.add_argument(
        "--subjects",
        type=Sequence[str],
        default=EDIT_SUBJECTS,
        help="Subjects to edit: names of shipped subjects, or YAML files.",
    )
    parser.add_argument(
        "--unseen",
        type=Sequence[str],
        default=UNSEEN_SUBJECTS,
        help="Subjects that occur only in the test split unseen_subjects.",
    )
    parser.add_argument(
        "--contact_sheets",
        "--contact-sheets",
        type=Path | None,
        help="Output folder for contact sheets of each --subject_spec, or of all shipped subjects without one.",
    )


def run(options: Namespace) -> None:
    """Render records, contact sheets, or both."""
    custom = _parse_paths(options.subject_spec)
    if options.out is None and options.contact_sheets is None:
        raise DataFormatError(
            "no output folder given: use --out FOLDER for records, --contact_sheets FOLDER for contact sheets"
        )
    if options.contact_sheets is not None:
        specs = {f"{Path(source).stem}.png": load_subject_spec(source) for source in custom or shipped_subjects()}
        with run_folder(options.contact_sheets / UNFINISHED):
            write_contact_sheets(options.contact_sheets, specs, options.seed)
        print(f"{options.contact_sheets}: {len(specs)} contact sheets")
    if options.out is None:
        return
    with run_folder(options.out / UNFINISHED):
        _render_records(options, custom or list(options.subjects))


def _render_records(options: Namespace, subjects: Sequence[str]) -> None:
    specs = [load_subject_spec(source) for source in (*subjects, *options.unseen)]
    sheets = {f"contact-sheet-{file_name_of(spec.subject)}.png": spec for spec in specs}
    check_written(options.out, [RETENTION_NAME, *sheets])  # before anything is drawn
    splits = render_splits(
        options.out,
        options.seed,
        options.edit_records,
        options.test_records,
        options.edit_pairs,
        options.test_pairs,
        subjects,
        options.unseen,
        progress="pictures",
    )
    render_retention(options.out, options.seed)
    write_contact_sheets(options.out, sheets, options.seed)
    sizes = ", ".join(f"{len(records)} {name}" for name, records in splits._asdict().items())
    print(f"{options.out / RECORDS_NAME}: {sizes} records")


def _parse_paths(values: str | Sequence[str]) -> list[str]:
    """Parse repeated options, lists, or both: `a.yaml`, `[a.yaml, b.yaml]`, or a list in a config file."""
    import yaml

    paths: list[str] = []
    for text in [values] if isinstance(values, str) else values:
        paths.extend(map(str, yaml.safe_load(text)) if text.startswith("[") else [text])
    return paths
