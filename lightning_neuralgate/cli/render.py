"""`neuralgate render`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.data.rendering.contact_sheet import write_contact_sheet
from lightning_neuralgate.data.rendering.dataset import (
    EDIT_SUBJECTS,
    RECORDS_NAME,
    UNSEEN_SUBJECTS,
    file_name_of,
    render_retention,
    render_splits,
)
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.errors import DataFormatError


def add_arguments(parser: ArgumentParser) -> None:
    """Options of rendering."""
    add_config(parser)
    parser.add_argument(
        "--out",
        type=Path | None,
        help="Folder for records.jsonl, retention.jsonl, images/, authors/ and a contact sheet of every subject.",
    )
    parser.add_argument("--seed", type=int, default=0, help="The same seed draws the same records.")
    parser.add_argument("--edit_records", type=int, default=10, help="Edit records per subject.")
    parser.add_argument("--test_records", type=int, default=20, help="Test records per subject.")
    parser.add_argument("--edit_pairs", type=int, default=5, help="Query pairs per edit record.")
    parser.add_argument("--test_pairs", type=int, default=5, help="Query pairs per test record.")
    parser.add_argument(
        "--subject_spec",
        "--subject-spec",
        action="append",
        default=[],
        help="YAML file of a subject of your own, edited in place of --subjects; may be given several times.",
    )
    parser.add_argument(
        "--subjects", type=Sequence[str], default=EDIT_SUBJECTS, help="Subjects to edit: shipped names or YAML files."
    )
    parser.add_argument("--unseen", type=Sequence[str], default=UNSEEN_SUBJECTS, help="Subjects kept for the end.")
    parser.add_argument(
        "--contact_sheets",
        "--contact-sheets",
        type=Path | None,
        help="Folder for a contact sheet of each --subject_spec, or without one of all shipped subjects.",
    )


def run(options: Namespace) -> None:
    """Draw the records, the contact sheets, or both."""
    own = _listed(options.subject_spec)
    if options.out is None and options.contact_sheets is None:
        raise DataFormatError("say where to draw: --out FOLDER for records, --contact_sheets FOLDER for contact sheets")
    if options.contact_sheets is not None:
        specs = {Path(source).stem: load_subject_spec(source) for source in own or shipped_subjects()}
        for name, spec in specs.items():
            write_contact_sheet(options.contact_sheets / f"{name}.png", spec, options.seed)
        print(f"{options.contact_sheets}: {len(specs)} contact sheets")
    if options.out is not None:
        _render(options, own or list(options.subjects))


def _render(options: Namespace, subjects: Sequence[str]) -> None:
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
    for source in (*subjects, *options.unseen):
        spec = load_subject_spec(source)
        write_contact_sheet(options.out / f"contact-sheet-{file_name_of(spec.subject)}.png", spec, options.seed)
    sizes = ", ".join(f"{len(records)} {name}" for name, records in splits._asdict().items())
    print(f"{options.out / RECORDS_NAME}: {sizes} records")


def _listed(given: str | Sequence[str]) -> list[str]:
    """Paths given one by one, or as a list: `a.yaml`, `[a.yaml, b.yaml]`, or a list in a config file."""
    import yaml

    listed: list[str] = []
    for text in [given] if isinstance(given, str) else given:
        listed.extend(map(str, yaml.safe_load(text)) if text.startswith("[") else [text])
    return listed
