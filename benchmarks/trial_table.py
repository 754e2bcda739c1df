"""Tables and plot of the trial.

    python -m benchmarks.trial_table --out runs/trial --write docs

`--write` also writes `trial-table.md` and `trial-frontier.png` into a folder.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trial import Job, chosen_try, raced, read_result, winner
from benchmarks.trial_arms import ARMS
from lightning_neuralgate.data.ordinary import FORMS
from lightning_neuralgate.demo.measured import MAX_LEAK, validation_leak, worst_attack
from lightning_neuralgate.runtime.files import atomic_write

REFERENCE = "ungated"
"""Arm that the others are compared with, question by question."""
_RESAMPLES = 2000
_SETS = ("pope", "mme", "scienceqa")
Results = Sequence[dict[str, Any]]


def of_seeds(out: Path, stage: str, arm: str, number: int = 0) -> list[dict[str, Any]]:
    """Return the results of an arm with all seeds that are finished, by seed."""
    seeds = sorted(int(folder.name.removeprefix("seed-")) for folder in (out / stage).glob("seed-*"))
    found = [read_result(out, Job(stage, seed, arm, number)) for seed in seeds]
    return [result for result in found if result is not None]


def mean(values: Sequence[float]) -> str:
    """Format mean and standard deviation."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def difference(results: Results, reference: Results) -> tuple[float, float, float]:
    """Return how much more is refused of rungs 4 to 8 than by the reference, and its 95 % interval.

    Paired by seed and question; the bootstrap draws questions within each seed.
    """
    rng = np.random.default_rng(0)
    by_seed = {result["seed"]: result["refused_items"] for result in reference}
    pairs = [
        np.array([value - by_seed[result["seed"]][item] for item, value in result["refused_items"].items()])
        for result in results
        if result["seed"] in by_seed
    ]
    samples = [np.mean([rng.choice(values, len(values)).mean() for values in pairs]) for _ in range(_RESAMPLES)]
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(np.mean([values.mean() for values in pairs])), float(low), float(high)


def validation_lines(out: Path) -> Iterator[str]:
    """Lines of the table of tries."""
    tested = raced(out) or {}
    yield "| arm | leak / refused of rungs 4-8 / unchanged answers of each try | best | tested |"
    yield "| --- | --- | ---: | --- |"
    for name, arm in ARMS.items():
        results = [read_result(out, Job("validation", 0, name, number)) for number in range(len(arm.tries))]
        cells = [
            "-" if r is None else f"{validation_leak(r):.2f} / {r['collateral']:.2f} / {r['unchanged']:.2f}"
            for r in results
        ]
        best = chosen_try(out, name, len(arm.tries))
        chosen = "-" if best is None else str(best[0] + 1)
        yield f"| {name} | {'; '.join(cells)} | {chosen} | {'yes' if name in tested else 'no'} |"


def _columns(unedited: Results) -> Mapping[str, Callable[[dict[str, Any]], float]]:
    before = {result["seed"]: result for result in unedited}

    def lost(task: str) -> Callable[[dict[str, Any]], float]:
        key = "refusal_aware_accuracy"
        return lambda r: before[r["seed"]]["utility"][task][key] - r["utility"][task][key]

    splits = {"test": "test", "unseen attributes": "unseen_attributes", "unseen subjects": "unseen_subjects"}
    return {
        **{f"leak: {name}": (lambda r, s=split: r["rates"][s]["leak_rate"]) for name, split in splits.items()},  # type: ignore[misc]
        "contrast accuracy": lambda r: r["ladder"]["contrast_accuracy"],
        "refused of rungs 4-8": lambda r: r["collateral"],
        **{f"{task.upper()} lost": lost(task) for task in _SETS},
        "unchanged": lambda r: r["unchanged"],
        "worst attack": lambda r: worst_attack(r) or 0.0,
        "int4": lambda r: r["attacks"]["rounded_int4"]["leak"] or 0.0,
    }


def test_lines(out: Path) -> Iterator[str]:
    """Lines of the table of test results."""
    unedited = of_seeds(out, "test", "unedited")
    columns = _columns(unedited)
    tested = raced(out) or {}
    results = {arm: of_seeds(out, "test", arm, number) for arm, number in tested.items()}
    yield f"| arm | {' | '.join(columns)} | more refused than `{REFERENCE}` [95 %] | seeds |"
    yield "| --- |" + " ---: |" * (len(columns) + 2)
    for arm, rows in results.items():
        if rows:
            cells = [mean([figure(row) for row in rows]) for figure in columns.values()]
            value, low, high = difference(rows, results[REFERENCE]) if results.get(REFERENCE) else (float("nan"),) * 3
            yield f"| {arm} | {' | '.join(cells)} | {value:+.3f} [{low:+.3f}, {high:+.3f}] | {len(rows)} |"


def form_lines(out: Path) -> Iterator[str]:
    """Lines of the table of forms that neither retention questions nor keys had."""
    best = winner(out)
    tested = raced(out) or {}
    yield f"| arm | {' | '.join(FORMS)} |"
    yield "| --- |" + " ---: |" * len(FORMS)
    for arm in dict.fromkeys((best, REFERENCE)):
        if arm is not None and arm in tested:
            found = [read_result(out, Job("forms", 0, arm, tested[arm], form)) for form in FORMS]
            cells = ["-" if r is None else f"{r['refused']:.2f} ({r['refused_before']:.2f})" for r in found]
            yield f"| {arm} | {' | '.join(cells)} |"


def draw_frontier(out: Path, file: Path) -> None:
    """Plot leak on unseen subjects against collateral refusals, one point per arm with its spread over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for arm, number in (raced(out) or {}).items():
        rows = of_seeds(out, "test", arm, number)
        if not rows:
            continue
        points = [[r["collateral"], r["rates"]["unseen_subjects"]["leak_rate"]] for r in rows]
        centre, spread = np.mean(points, 0), np.std(points, 0)
        axes.errorbar(*centre, xerr=spread[0], yerr=spread[1], fmt="o", capsize=2, label=arm)
        axes.annotate(arm, centre, xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("refused of ordinary questions on rungs 4 to 8")
    axes.set_ylabel("leak rate on unseen subjects")
    axes.set_xlim(left=-0.02)
    axes.set_ylim(bottom=-0.02)
    axes.grid(alpha=0.3)
    with atomic_write(file) as draft:
        figure.savefig(draft, format="png", dpi=110)


def table_text(out: Path) -> str:
    """All tables as Markdown."""
    parts = [f"### Tries on validation (seed 0; at most {MAX_LEAK:.0%} may leak)\n", *validation_lines(out)]
    if of_seeds(out, "test", "unedited"):
        parts += ["\n### Test (mean ± standard deviation over seeds)\n", *test_lines(out)]
    if (out / "forms").is_dir():
        parts += ["\n### Refused of a form that the edit did not see (in brackets: unedited)\n", *form_lines(out)]
    parts += ["\n### The arms\n", *(f"- `{name}`: {arm.about}" for name, arm in ARMS.items())]
    return "\n".join(parts) + "\n"


def print_tables(out: Path) -> None:
    """Print all tables."""
    print(table_text(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/trial"))
    parser.add_argument("--write", type=Path, help="folder of the table and the plot")
    args = parser.parse_args()
    print_tables(args.out)
    if args.write is not None:
        with atomic_write(args.write / "trial-table.md") as draft:
            draft.write_text(table_text(args.out), encoding="utf-8")
        draw_frontier(args.out, args.write / "trial-frontier.png")


if __name__ == "__main__":
    main()
