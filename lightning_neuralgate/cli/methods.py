"""`neuralgate methods`: compare methods of editing on one model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from lightning_neuralgate.cli.options import add_config, check_folder
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.tables import console
from lightning_neuralgate.demo.cases import cases, cases_markdown
from lightning_neuralgate.demo.comparison import SWEEPS, Comparison
from lightning_neuralgate.demo.comparison_table import (
    draw_frontier,
    draw_sweep,
    insert_tables,
    markdown,
    rows,
    split_page,
    sweep_rows,
    tables,
)
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.methods import METHODS
from lightning_neuralgate.runtime.files import atomic_write, check_output
from lightning_neuralgate.runtime.parsing import read_json_object
from lightning_neuralgate.runtime.run_folder import UNFINISHED, run_folder

ALL = "all"
SETTINGS_NAME, RESULTS_NAME, TABLE_NAME, PLOT_NAME = "comparison.json", "methods.json", "methods.md", "frontier.png"
CASES_NAME = "cases"
SWEPT = "neural_gate"
"""The method of a sweep without `--methods`."""


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
    parser.add_argument(
        "--sweep",
        type=str | None,
        default=None,
        help=f"Compare values of one setting instead of methods: {', '.join(SWEEPS)}; the method is {SWEPT} unless --methods "
        "names others.",
    )
    parser.add_argument(
        "--write",
        type=Path | None,
        default=None,
        help="Also insert the tables into a Markdown file, between its lines <!-- methods --> and <!-- end of methods -->; "
        "those of a sweep between <!-- sweep of NAME --> and <!-- end of sweep of NAME -->.",
    )
    parser.add_argument("--processes", type=PositiveInt, default=1, help="Processes that share the work.")
    parser.add_argument("--layer", type=int, default=10, help="Decoder layer that methods edit.")
    parser.add_argument("--edit_records", type=PositiveInt, default=2, help="Edit records per subject.")
    parser.add_argument("--test_records", type=PositiveInt, default=2, help="Test records per subject and split.")


def check(options: Namespace) -> None:
    """Refuse options that cannot work before anything is loaded.

    Raises:
        UnsupportedSetupError: an unknown method or sweep, or no method of the tier.
        DataFormatError: the output folder is a file; the file to insert into lacks its lines.
    """
    check_folder("--out", options.out)
    comparison = comparison_of(options)
    if options.write is not None:
        split_page(options.write, marker(comparison))


def comparison_of(options: Namespace) -> Comparison:
    """Return the comparison that the options describe."""
    every = [SWEPT] if options.sweep is not None else list(METHODS)
    names = every if options.methods == ALL else [name.strip() for name in options.methods.split(",")]
    chosen = Comparison(options.out, names, options.seeds, _measured(options), options.tuned, options.sweep)
    if options.tier is None:
        return chosen
    of_tier = [name for name in names if METHODS[name].tier <= options.tier]
    if not of_tier:
        raise UnsupportedSetupError(f"none of these methods is of tier {options.tier} or below; choose another --tier")
    return replace(chosen, methods=of_tier)


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
    text = markdown(comparison)
    written = _write_sweep(comparison, text) if comparison.sweep is not None else _write_methods(comparison, text)
    if options.write is not None:
        insert_tables(options.write, marker(comparison), text)
        written["inserted into"] = options.write
    print_methods(comparison)
    show("; ".join(f"{name}: {file}" for name, file in written.items()))


def marker(comparison: Comparison) -> str:
    """Return the name of the place in a Markdown file that the tables are inserted in."""
    return "methods" if comparison.sweep is None else f"sweep of {comparison.sweep}"


def _write_methods(comparison: Comparison, text: str) -> dict[str, Path]:
    """Write the files of a comparison of methods, and return them by content."""
    out = comparison.out
    results = [{"method": m, "settings": settings, "results": found} for m, settings, found in rows(comparison)]
    found = list(cases(comparison))
    _write(out / RESULTS_NAME, _json({**asdict(comparison), "out": str(out), "rows": results}))
    _write(out / TABLE_NAME, text)
    _write(out / f"{CASES_NAME}.json", _json(found))
    _write(out / f"{CASES_NAME}.md", cases_markdown(found))
    draw_frontier(comparison, out / PLOT_NAME)
    return {
        "all figures": out / RESULTS_NAME,
        "table": out / TABLE_NAME,
        "plot": out / PLOT_NAME,
        "answers before and after": out / f"{CASES_NAME}.md",
    }


def _write_sweep(comparison: Comparison, text: str) -> dict[str, Path]:
    """Write the files of a sweep, and return them by content."""
    figures, table, plot = (comparison.out / f"sweep-{comparison.sweep}.{kind}" for kind in ("json", "md", "png"))
    results = [{"method": m, "value": value, "results": found} for m, value, found in sweep_rows(comparison)]
    _write(figures, _json({**asdict(comparison), "out": str(comparison.out), "rows": results}))
    _write(table, text)
    draw_sweep(comparison, plot)
    return {"all figures": figures, "table": table, "plot": plot}


def _json(content: Any) -> str:
    return json.dumps(content, indent=1) + "\n"


def _write(file: Path, text: str) -> None:
    with atomic_write(file) as draft:
        draft.write_text(text, encoding="utf-8")


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
    _write(file, _json(settings))


def print_methods(comparison: Comparison) -> None:
    """Print the test tables."""
    from rich.table import Table

    for name, (titles, body) in tables(comparison).items():
        table = Table(title=name)
        for title in titles:
            table.add_column(title, justify="left" if title in ("method", "settings") else "right")
        for row in body:
            table.add_row(*row)
        console(220).print(table)
