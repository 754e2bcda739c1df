"""`neuralgate render`: synthetic records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.paths import expand_path
from lightning_neuralgate.data.records import RECORDS_NAME, write_retention
from lightning_neuralgate.data.rendering.contact_sheet import write_contact_sheet
from lightning_neuralgate.data.rendering.dataset import (
    EDIT_SUBJECTS,
    RETENTION_NAME,
    UNSEEN_SUBJECTS,
    file_name_of,
    render_retention,
    render_splits,
)
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.data.scenes.contact_sheet import write_scene_sheet
from lightning_neuralgate.data.scenes.retention import scene_retention
from lightning_neuralgate.data.scenes.spec import load_scene_spec, shipped_places
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.parsing import parse_yaml


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
        help="Output folder for contact sheets of each --subject_spec and --places, or of all shipped ones without any.",
    )
    parser.add_argument(
        "--places",
        type=Sequence[str] | None,
        help="Places of scenes, for contact sheets and --scene_questions: names of shipped places, or YAML files.",
    )
    parser.add_argument(
        "--scene_questions",
        type=int,
        default=0,
        help="Retention questions about scenes of the places (existence, count, position, colour, writing, choice, caption).",
    )


def run(options: Namespace) -> None:
    """Render records, contact sheets, or both."""
    custom = _parse_paths(options.subject_spec)
    if options.out is None and options.contact_sheets is None:
        raise DataFormatError(
            "no output folder given: use --out FOLDER for records, --contact_sheets FOLDER for contact sheets"
        )
    if options.contact_sheets is not None:
        all_shipped = not custom and options.places is None
        subjects = shipped_subjects() if all_shipped else custom
        scenes = shipped_places() if all_shipped else options.places or ()
        for source in subjects:
            sheet = options.contact_sheets / f"{Path(source).stem}.png"
            write_contact_sheet(sheet, load_subject_spec(source), options.seed)
        for source in scenes:
            place = load_scene_spec(source)
            write_scene_sheet(options.contact_sheets / f"place-{file_name_of(place.place)}.png", place, options.seed)
        show(f"{options.contact_sheets}: {len(subjects) + len(scenes)} contact sheets")
    if options.out is None:
        return
    subjects = custom or list(options.subjects)
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
    retention = render_retention(options.out, options.seed)
    if options.scene_questions:
        retention += scene_retention(options.out, options.seed, options.scene_questions, options.places)
        write_retention(options.out / RETENTION_NAME, retention, options.out)
    for source in (*subjects, *options.unseen):
        spec = load_subject_spec(source)
        write_contact_sheet(options.out / f"contact-sheet-{file_name_of(spec.subject)}.png", spec, options.seed)
    sizes = ", ".join(f"{len(records)} {name}" for name, records in splits._asdict().items())
    show(f"{options.out / RECORDS_NAME}: {sizes} records")


def _parse_paths(values: str | Sequence[str]) -> list[str]:
    """Parse repeated options, lists, or both: `a.yaml`, `[a.yaml, b.yaml]`, or a list in a config file."""
    paths: list[str] = []
    for text in [values] if isinstance(values, str) else values:
        paths.extend(map(str, parse_yaml(text, "--subjects")) if text.startswith("[") else [text])
    paths = [expand_path(path) for path in paths]
    return paths
