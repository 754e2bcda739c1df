"""`neuralgate compare`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.cli.task_table import print_changes, print_comparison
from lightning_neuralgate.metrics.functional import RefusalVariant
from lightning_neuralgate.tasks.comparing import COMPARISON_NAME, compare_runs, read_changes


def add_arguments(parser: ArgumentParser) -> None:
    """Two runs."""
    add_config(parser)
    parser.add_argument("first", type=Path, help="Folder with answers.jsonl of one model.")
    parser.add_argument("second", type=Path, help="Folder with answers.jsonl of the other, to the same questions.")
    parser.add_argument("--variant", type=RefusalVariant, default="prefix", help="Keyword list that says what refuses.")
    parser.add_argument("--out", type=Path, default=Path("compared"), help="Folder for compare.json and changed.jsonl.")


def run(options: Namespace) -> None:
    """Print and write how two runs differ."""
    show_comparison(
        options.first, options.second, options.out, options.variant, (options.first.name, options.second.name)
    )


def show_comparison(first: Path, second: Path, out: Path, variant: RefusalVariant, names: tuple[str, str]) -> None:
    """Compare two folders; print the table and what changed."""
    comparison = compare_runs(first, second, out, variant)
    print_comparison(comparison, names)
    print("Differences: second - first. p: exact McNemar for shares of items, else paired bootstrap; not corrected.")
    print_changes(comparison, read_changes(out), names)
    if comparison["skipped"]:
        print(f"not compared, since only one run has it: {', '.join(comparison['skipped'])}")
    print(f"all figures, and all items that changed: {out / COMPARISON_NAME}")
