"""`neuralgate demo`: the complete workflow on a small built-in model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.tables import print_rates
from lightning_neuralgate.demo.experiment import EditSettings
from lightning_neuralgate.demo.run import ARMS, run_demo, run_demo_seeds


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate demo`."""
    add_config(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        help="Output folder for data, gate, edited model, answers, results and report.",
    )
    parser.add_argument("--model", type=str | None, help="Shorthand for --settings.model.")
    parser.add_argument(
        "--beside", type=Path | None, help="--out folder of another demo, to show its numbers in the same table."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of data and training.")
    parser.add_argument(
        "--seeds", type=int, help="Number of seeds to run, starting at --seed; the report shows mean and spread."
    )
    parser.add_argument(
        "--processes",
        type=int | None,
        help="Number of processes, which share the threads. Default: 2 on a CPU with at least two threads, else 1.",
    )
    parser.add_class_arguments(EditSettings, "settings")


def run(options: Namespace) -> None:
    """Run the demo and print its table."""
    settings = options.settings if options.model is None else replace(options.settings, model=options.model)
    processes = options.processes or (1 if torch.cuda.is_available() or torch.get_num_threads() < 2 else 2)
    if options.seeds is None:
        results = run_demo(options.out, options.seed, settings, options.beside, processes)
    else:
        seeds = range(options.seed, options.seed + options.seeds)
        results = run_demo_seeds(options.out, seeds, settings, options.beside, processes)
    print_table(results)
    show(f"Report: {options.out / 'report.html'}")


def print_table(results: dict[str, Any]) -> None:
    """Print the results as a table."""
    arms = {arm: results[arm] for arm in ARMS if arm in results}
    print_rates(arms, results.get("spread"), "Rates before and after the edit")
    seeds = f"seeds {results['seeds']}" if "seeds" in results else f"seed {results['seed']}"
    total = sum(results["seconds"].values())
    show(f"RtA by the keyword list '{results['refusal_variant']}'; {seeds}; {total:.0f} s per seed.")
