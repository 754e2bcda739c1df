"""`neuralgate compare`: compare two runs on the same questions."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config, check_folder
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.tables import print_changes, print_comparison, print_questions, print_unclear
from lightning_neuralgate.metrics.functional import RefusalVariant
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS
from lightning_neuralgate.tasks.comparing import CHANGED_NAME, COMPARISON_NAME, compare_runs, read_changes
from lightning_neuralgate.tasks.judge_options import JudgeOptions
from lightning_neuralgate.tasks.verdicts import GuardScorer, NamedRefusalJudge


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of a comparison."""
    add_config(parser)
    parser.add_argument("first", type=Path, help="Folder with the answers.jsonl of one model.")
    parser.add_argument(
        "second", type=Path, help="Folder with the answers.jsonl of another model, to the same questions."
    )
    parser.add_argument("--variant", type=RefusalVariant, default="prefix", help="Keyword list that detects refusals.")
    parser.add_class_arguments(JudgeOptions, "judge")
    parser.add_argument("--out", type=Path, default=Path("compared"), help="Folder for compare.json and changed.jsonl.")


def run(options: Namespace) -> None:
    """Compare two runs, and print and write their differences."""
    check_folder("--out", options.out)
    refusals = options.judge.refusal_judge(options.variant)
    first_guard, second_guard = options.judge.guard_scorers(2)
    names = (options.first.name, options.second.name)
    folders = (options.first, options.second)
    show_comparison(folders, options.out, names, (refusals, refusals), (first_guard, second_guard))


def show_comparison(
    folders: tuple[Path, Path],
    out: Path,
    names: tuple[str, str],
    refusals: tuple[NamedRefusalJudge, NamedRefusalJudge],
    guard: tuple[GuardScorer, GuardScorer],
) -> None:
    """Compare two folders, and print the table and the changed items; one refusal judge and guard scorer per folder."""
    comparison = compare_runs(*folders, out, refusals, guard)
    print_comparison(comparison, names)
    show("Differences: second - first. p: exact McNemar for shares of items, else paired bootstrap; not corrected.")
    show(f"Refusals by {comparison['refusals']}.")
    for task in comparison["tasks"]:
        if BENCHMARKS[task].uses_guard:
            show(f"{task}: {'; '.join(dict.fromkeys(comparison['guard']))}")
    for which, name in zip(("first", "second"), names, strict=True):
        print_unclear(comparison[f"unclear_{which}"], f" of {name}")
        print_questions(comparison[f"questions_{which}"], name)
    print_changes(comparison, read_changes(out), names)
    if comparison["skipped"]:
        show(f"not compared, because only one run has it: {', '.join(comparison['skipped'])}")
    show(f"all figures, and all items that changed: {out / COMPARISON_NAME}, {out / CHANGED_NAME}")
