"""`neuralgate demo`: the complete workflow on a small built-in model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.tables import console, print_rates
from lightning_neuralgate.demo.experiment import EditSettings
from lightning_neuralgate.demo.run import ARMS, run_demo, run_demo_seeds

PRESETS = {
    "paper": {
        "settings.schedule": "paper",
        "settings.tau": 0.3,
        "settings.scope": "subject_last",
        "settings.epochs": 1,
        "settings.lr": 1e-5,
        "settings.alpha": 1.25,
        "settings.retention_weight": 0.0,
        "settings.recovery_share": 0.0,
        "settings.indirect_share": 0.0,
        "settings.keep_share": 0.0,
    }
}
"""Defaults of options by `--preset`."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate demo`."""
    add_config(parser)
    parser.add_argument(
        "--preset",
        type=Literal["paper"] | None,
        default=None,
        help="paper: the paper's settings of the edit, instead of the defaults of other options. They suit models of 7B "
        "parameters; the embedded ones hardly change at the learning rate (--settings.lr).",
    )
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
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="Answer all ordinary questions instead of a share, and attack the models (--settings.questions_per_rung and "
        "questions_per_set null, --settings.attacks true).",
    )
    parser.add_class_arguments(EditSettings, "settings")


def run(options: Namespace) -> None:
    """Run the demo and print its table."""
    settings = options.settings if options.model is None else replace(options.settings, model=options.model)
    if options.thorough:
        settings = replace(settings, questions_per_rung=None, questions_per_set=None, attacks=True)
    processes = options.processes or (1 if torch.cuda.is_available() or torch.get_num_threads() < 2 else 2)
    if options.seeds is None:
        results = run_demo(options.out, options.seed, settings, options.beside, processes)
    else:
        seeds = range(options.seed, options.seed + options.seeds)
        results = run_demo_seeds(options.out, seeds, settings, options.beside, processes)
    print_table(results)
    print_ordinary(results)
    show(f"Report: {options.out / 'report.html'}")


def print_table(results: dict[str, Any]) -> None:
    """Print the results as a table."""
    arms = {arm: results[arm] for arm in ARMS if arm in results}
    print_rates(arms, results.get("spread"), "Rates before and after the edit")
    seeds = f"seeds {results['seeds']}" if "seeds" in results else f"seed {results['seed']}"
    total = sum(results["seconds"].values())
    show(f"RtA by the keyword list '{results['refusal_variant']}'; {seeds}; {total:.0f} s per seed.")


def print_ordinary(results: dict[str, Any]) -> None:
    """Print the figures on ordinary questions as a table, and the headline of the report."""
    from rich.table import Table

    from lightning_neuralgate.demo.report.ordinary import OrdinaryQuestions
    from lightning_neuralgate.demo.report.scores import Scores
    from lightning_neuralgate.demo.report.summary import summarize_scores

    ordinary = OrdinaryQuestions(results)
    if rows := [*ordinary.ladder, *ordinary.sets]:
        table = Table(title="Ordinary questions: shares that are refused, and that are answered right")
        table.add_column("kind of question")
        for label in ("n", *(f"{model}\n{column}" for model in ordinary.models for column in ("refused", "right"))):
            table.add_column(label, justify="right")
        for row in rows:
            cells = [str(row.figures[model][column]) for model in ordinary.models for column in ("refused", "right")]
            table.add_row(row.label, "" if row.n.value is None else f"{row.n.value:.0f}", *cells)
        console(160).print(table)
    summary = summarize_scores(Scores(results), ordinary)
    show(f"{summary.headline} {summary.goal}".strip().replace("\u00a0", " "))
