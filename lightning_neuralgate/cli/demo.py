"""`neuralgate demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.demo import ARMS, SPLITS, DemoSettings, run_demo, run_demo_seeds


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the demo."""
    add_config(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="Folder for everything the demo leaves.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of data and training.")
    parser.add_argument("--seeds", type=int, help="Run so many seeds from --seed on; report mean and spread.")
    parser.add_class_arguments(DemoSettings, "settings")


def run(options: Namespace) -> None:
    """Run the demo and print its table."""
    if options.seeds is None:
        results = run_demo(options.out, options.seed, options.settings)
    else:
        results = run_demo_seeds(options.out, range(options.seed, options.seed + options.seeds), options.settings)
    print_table(results)
    print(f"Report: {options.out / 'report.html'}")


def print_table(results: dict[str, Any]) -> None:
    """The results as a table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What the edit did")
    for column in ("model", "split", "RtA sensitive", "answered benign", "EtA", "n"):
        table.add_column(column, justify="left" if column in ("model", "split") else "right", no_wrap=column == "split")
    for arm in ARMS:
        for split in SPLITS:
            row, spread = results[arm][split], results.get("spread", {}).get(arm, {}).get(split, {})
            cells = [
                f"{row[key]:.3f}" + (f" ± {spread[key]:.3f}" if spread else "")
                for key in ("rta_sensitive", "answer_rate_benign", "eta")
            ]
            table.add_row(arm, split, *cells, f"{row['n']:.0f}")
    console = Console()
    console.print(table)
    seeds = f"seeds {results['seeds']}" if "seeds" in results else f"seed {results['seed']}"
    total = sum(results["seconds"].values())
    console.print(f"RtA by the keyword list '{results['refusal_variant']}'; {seeds}; {total:.0f} s a seed.")
