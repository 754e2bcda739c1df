"""`neuralgate methods`: compare methods of editing on one model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from lightning_neuralgate.cli.options import add_config, check_folder
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.tables import console
from lightning_neuralgate.demo.comparison import Comparison
from lightning_neuralgate.demo.comparison_table import cells, draw_frontier, markdown, rows
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.methods import METHODS
from lightning_neuralgate.runtime.files import atomic_write, check_output
from lightning_neuralgate.runtime.parsing import read_json_object
from lightning_neuralgate.runtime.run_folder import UNFINISHED, run_folder

ALL = "all"
SETTINGS_NAME, RESULTS_NAME, TABLE_NAME, PLOT_NAME = "comparison.json", "methods.json", "methods.md", "frontier.png"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate methods`."""
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, help="Output folder; an interrupted run resumes from it.")
    parser.add_argument(
        "--model.name",
        type=str,
        default="smol-llava",
        help="The unedited model: smol-llava, smol-minigpt, a folder or a Hub repository.",
    )
    parser.add_argument(
        "--methods", type=str, default=ALL, help=f"Comma-separated methods, or all: {', '.join(METHODS)}."
    )
    parser.add_argument("--tier", type=int | None, default=None, help="Only methods up to this tier (1 to 3).")
    parser.add_argument("--seeds", type=PositiveInt, default=1, help="Number of seeds of the test, from 0 on.")
    parser.add_argument(
        "--tuned", type=bool, default=True, help="Also choose settings among each method's tries on validation data."
    )
    parser.add_argument("--processes", type=PositiveInt, default=1, help="Processes that share the work.")
    parser.add_argument("--layer", type=int, default=10, help="Decoder layer that methods edit.")
    parser.add_argument("--edit_records", type=PositiveInt, default=2, help="Edit records per subject.")
    parser.add_argument("--test_records", type=PositiveInt, default=2, help="Test records per subject and split.")


def check(options: Namespace) -> None:
    """Refuse options that cannot work before anything is loaded.

    Raises:
        UnsupportedSetupError: an unknown method, or no method of the tier.
        DataFormatError: the output folder is a file.
    """
    check_folder("--out", options.out)
    comparison_of(options)


def comparison_of(options: Namespace) -> Comparison:
    """Return the comparison that the options describe."""
    names = list(METHODS) if options.methods == ALL else [name.strip() for name in options.methods.split(",")]
    chosen = Comparison(options.out, names, options.seeds, _measured(options), options.tuned)
    if options.tier is None:
        return chosen
    of_tier = [name for name in names if METHODS[name].tier <= options.tier]
    if not of_tier:
        raise UnsupportedSetupError(f"none of these methods is of tier {options.tier} or below; choose another --tier")
    return Comparison(options.out, of_tier, options.seeds, _measured(options), options.tuned)


def _measured(options: Namespace) -> dict[str, Any]:
    return {"model": options.model.name} | {name: options[name] for name in ("layer", "edit_records", "test_records")}


def run(options: Namespace) -> None:
    """Fit and measure all methods, and write and print the table."""
    comparison = comparison_of(options)
    check_output("--out", options.out, {"--model.name": options.model.name})
    with run_folder(options.out / UNFINISHED):
        _check_same(options.out / SETTINGS_NAME, dict(comparison.options))
        count = sum(1 for _ in comparison.jobs())
        show(f"{len(comparison.methods)} methods, at least {count} fits with their measurements")
        comparison.run(options.processes)
    results = [
        {"method": method, "settings": settings, "results": found} for method, settings, found in rows(comparison)
    ]
    content = {**asdict(comparison), "out": str(comparison.out), "rows": results}
    with atomic_write(options.out / RESULTS_NAME) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with atomic_write(options.out / TABLE_NAME) as draft:
        draft.write_text(markdown(comparison), encoding="utf-8")
    draw_frontier(comparison, options.out / PLOT_NAME)
    print_methods(comparison)
    show(
        f"all figures: {options.out / RESULTS_NAME}; table: {options.out / TABLE_NAME}; plot: {options.out / PLOT_NAME}"
    )


def _check_same(file: Path, settings: dict[str, Any]) -> None:
    """Store the settings of a comparison, or check that they are those of the one that is resumed.

    Raises:
        UnsupportedSetupError: the folder holds another comparison.
    """
    settings = json.loads(json.dumps(settings))
    if file.is_file():
        found = read_json_object(file, own=True, hint="give another --out")
        if differing := sorted(name for name in settings if found.get(name) != settings[name]):
            name = differing[0]
            raise UnsupportedSetupError(
                f"{file.parent} holds a comparison with {name} {found.get(name)}, and this one has {settings[name]}: give "
                "another --out, or the same options"
            )
        return
    with atomic_write(file) as draft:
        draft.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def print_methods(comparison: Comparison) -> None:
    """Print the test table."""
    from rich.table import Table

    titles, body = cells(comparison)
    table = Table(title="Methods on test data")
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number in (0, 2) else "right")
    for row in body:
        table.add_row(*row)
    console(220).print(table)
