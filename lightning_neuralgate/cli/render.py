"""`neuralgate render`: synthetic records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.paths import expand_path
from lightning_neuralgate.data.ordinary import FORMS
from lightning_neuralgate.data.records import RECORDS_NAME
from lightning_neuralgate.data.rendering.contact_sheet import contact_sheet, write_contact_sheets
from lightning_neuralgate.data.rendering.dataset import (
    EDIT_SUBJECTS,
    UNSEEN_SUBJECTS,
    file_name_of,
    render_splits,
)
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.data.retention import RETENTION_NAME, RetentionForms, check_retention, render_retention
from lightning_neuralgate.data.scenes.contact_sheet import scene_sheet
from lightning_neuralgate.data.scenes.retention import scene_retention
from lightning_neuralgate.data.scenes.spec import load_scene_spec, shipped_places
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.parsing import parse_yaml
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
    parser.add_argument(
        "--validation_records",
        type=int,
        default=0,
        help="Validation records per subject, on which `neuralgate edit --dial auto` chooses the strength of an edit.",
    )
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
        "--retention_forms",
        type=RetentionForms,
        default="all",
        help="Forms of the retention questions: all ordinary forms in turn, or open questions about pictures of a shape.",
    )
    parser.add_argument(
        "--retention_count", type=NonNegativeInt | None, help="Retention questions. Default: 72, or 24 open ones."
    )
    parser.add_argument(
        "--retention_without",
        type=Sequence[str],
        default=(),
        help=f"Forms of retention questions to leave out: {', '.join(FORMS)}.",
    )
    parser.add_argument(
        "--scene_questions",
        type=int,
        default=0,
        help="Further retention questions about scenes of the places, in many forms.",
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
        places = shipped_places() if all_shipped else options.places or ()
        sheets = {
            f"{Path(source).stem}.png": partial(contact_sheet, load_subject_spec(source), options.seed)
            for source in subjects
        }
        for place in map(load_scene_spec, places):
            sheets[f"place-{file_name_of(place.place)}.png"] = partial(scene_sheet, place, options.seed)
        with run_folder(options.contact_sheets / UNFINISHED):
            write_contact_sheets(options.contact_sheets, sheets)
        show(f"{options.contact_sheets}: {len(sheets)} contact sheets")
    if options.out is None:
        return
    with run_folder(options.out / UNFINISHED):
        _render_records(options, custom or list(options.subjects))


def _render_records(options: Namespace, subjects: Sequence[str]) -> None:
    specs = [load_subject_spec(source) for source in (*subjects, *options.unseen)]
    sheets = {
        f"contact-sheet-{file_name_of(spec.subject)}.png": partial(contact_sheet, spec, options.seed) for spec in specs
    }
    # before anything is drawn
    try:
        check_retention(options.retention_forms, options.retention_without)
    except ValueError as error:
        raise DataFormatError(f"--retention_without: {error}") from error
    check_written(options.out, [RETENTION_NAME, *sheets])
    splits = render_splits(
        options.out,
        options.seed,
        options.edit_records,
        options.test_records,
        options.edit_pairs,
        options.test_pairs,
        subjects,
        options.unseen,
        "pictures",
        options.validation_records,
    )
    scenes = scene_retention(options.seed, options.scene_questions, options.places)
    render_retention(
        options.out,
        options.seed,
        options.retention_forms,
        options.retention_count,
        options.retention_without,
        subjects,
        scenes,
    )
    write_contact_sheets(options.out, sheets)
    sizes = ", ".join(f"{len(records)} {name}" for name, records in splits._asdict().items() if records)
    show(f"{options.out / RECORDS_NAME}: {sizes} records")


def _parse_paths(values: str | Sequence[str]) -> list[str]:
    """Parse repeated options, lists, or both: `a.yaml`, `[a.yaml, b.yaml]`, or a list in a config file."""
    paths: list[str] = []
    for text in [values] if isinstance(values, str) else values:
        paths.extend(map(str, parse_yaml(text, "--subjects")) if text.startswith("[") else [text])
    paths = [expand_path(path) for path in paths]
    return paths
