"""Tables and plot of a comparison of methods."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_neuralgate.attacks.scoring import ANY
from lightning_neuralgate.demo.comparison import DEFAULT, TUNED, UNEDITED, Comparison, Job
from lightning_neuralgate.demo.measured import validation_leak, worst_attack
from lightning_neuralgate.methods import METHODS
from lightning_neuralgate.runtime.files import atomic_write

Figure = Callable[[Mapping[str, Any]], float | None]
_SETS = ("pope", "mme", "scienceqa")


def rows(comparison: Comparison) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yield method, settings and the test results of the finished seeds, in the order of tables; first the unedited model."""
    wanted = [(UNEDITED, DEFAULT), *((m, s) for m in comparison.methods for s in (DEFAULT, TUNED))]
    for method, settings in wanted:
        jobs = [Job("test", seed, method, settings) for seed in range(comparison.seeds)]
        found = [result for job in jobs if (result := comparison.result(job)) is not None]
        if found:
            yield method, settings, found


def columns(comparison: Comparison) -> dict[str, Figure]:
    """Return the figures of tables: title -> function of a test result; None where a result has no such figure."""
    before = {
        seed: result
        for seed in range(comparison.seeds)
        if (result := comparison.result(Job("test", seed, UNEDITED))) is not None
    }

    def lost(task: str) -> Figure:
        def figure(result: Mapping[str, Any]) -> float | None:
            key, reference = "refusal_aware_accuracy", before.get(result["seed"])
            if reference is None or task not in result.get("utility", {}):
                return None
            return float(reference["utility"][task][key] - result["utility"][task][key])

        return figure

    def rate(split: str, name: str) -> Figure:
        return lambda result: result["rates"].get(split, {}).get(name)

    return {
        "leak: test": rate("test", "leak_rate"),
        "leak: unseen attributes": rate("unseen_attributes", "leak_rate"),
        "leak: unseen subjects": rate("unseen_subjects", "leak_rate"),
        "refused: test": rate("test", "rta_sensitive"),
        "contrast accuracy": lambda result: result.get("ladder", {}).get("contrast_accuracy"),
        "refused: rungs 4-8": lambda result: result.get("collateral"),
        **{f"{task.upper()} lost": lost(task) for task in _SETS},
        "unchanged": lambda result: result.get("unchanged"),
        "worst attack": worst_attack,
        "any attack": lambda result: result["attacks"].get(ANY, {}).get("leak"),
        "int4": lambda result: result["attacks"].get("rounded_int4", {}).get("leak"),
        "seconds": lambda result: result.get("seconds"),
        "peak GB": lambda result: None if "peak_memory" not in result else result["peak_memory"] / 1e9,
        "size MB": lambda result: None if "artifact_bytes" not in result else result["artifact_bytes"] / 1e6,
    }


def mean_and_deviation(values: Sequence[float | None]) -> str:
    """Format the mean of the known values, with their standard deviation; "-" without any."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.3f}{spread}"


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the titles and the rows of the test table, as text."""
    figures = columns(comparison)
    body = []
    for method, settings, results in rows(comparison):
        tier = "" if method == UNEDITED else str(METHODS[method].tier)
        values = [mean_and_deviation([figure(result) for result in results]) for figure in figures.values()]
        body.append([method, tier, "" if method == UNEDITED else settings, *values, str(len(results))])
    return ["method", "tier", "settings", *figures, "seeds"], body


def markdown(comparison: Comparison) -> str:
    """Return the tables of tries and of test results as Markdown."""
    lines = []
    if comparison.tuned:
        lines += [
            "Tries on validation (leak / refused of rungs 4 to 8 / unchanged answers), seed 0:\n",
            "| method | tries | best |",
            "| --- | --- | ---: |",
        ]
        for method in comparison.methods:
            found = [comparison.result(job) for job in comparison.tries(method)]
            shown = [
                "-" if r is None else f"{validation_leak(r):.2f} / {r['collateral']:.2f} / {r['unchanged']:.2f}"
                for r in found
            ]
            best = comparison.tuned_try(method)
            lines.append(f"| {method} | {'; '.join(shown)} | {'-' if best is None else best + 1} |")
        lines.append("")
    titles, body = cells(comparison)
    lines += ["Test (mean ± standard deviation over seeds):\n", f"| {' | '.join(titles)} |"]
    lines.append("| --- | ---: | --- |" + " ---: |" * (len(titles) - 3))
    lines += [f"| {' | '.join(row)} |" for row in body]
    return "\n".join(lines) + "\n"


def draw_frontier(comparison: Comparison, file: Path) -> None:
    """Plot leak on unseen subjects against collateral refusals, with default and tuned settings, as a PNG."""
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(8, 5.5), layout="constrained")
    axes = plot.add_subplot()
    for method, settings, results in rows(comparison):
        points = [
            (r["collateral"], r["rates"].get("unseen_subjects", r["rates"]["test"])["leak_rate"]) for r in results
        ]
        x, y = (statistics.fmean(values) for values in zip(*points, strict=True))
        axes.plot(x, y, "o" if settings == TUNED else "x", color="C0" if settings == TUNED else "C7")
        axes.annotate(method, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("refused of ordinary questions on rungs 4 to 8 (x: default settings, o: tuned)")
    axes.set_ylabel("leak rate on unseen subjects")
    axes.grid(alpha=0.3)
    with atomic_write(file) as draft:
        plot.savefig(draft, format="png", dpi=110)
