"""Tables and plots of a comparison of methods, and of a sweep of one setting."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_neuralgate.attacks.scoring import ANY
from lightning_neuralgate.demo.comparison import DEFAULT, TUNED, UNEDITED, Comparison, Job
from lightning_neuralgate.demo.measured import validation_leak, worst_attack
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.methods import METHODS
from lightning_neuralgate.metrics.functional import SAFETY_PARTS, UTILITY_PARTS
from lightning_neuralgate.runtime.files import atomic_write

Figure = Callable[[Mapping[str, Any]], float | None]
_SETS = ("pope", "mme", "scienceqa")
_TASK_NAMES = {
    "privacy_pair": "PrivacyPair", "mllmguard": "MLLMGuard", "scienceqa": "ScienceQA", "mme": "MME", "pope": "POPE",
}  # fmt: skip
Cells = tuple[list[str], list[list[str]]]
"""Titles and rows of a table, as text."""


def rows(comparison: Comparison) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yield method, settings and the test results of the finished seeds, in the order of tables; first the unedited model."""
    wanted = [(UNEDITED, DEFAULT)]
    if comparison.sweep is None:
        wanted += [(method, settings) for method in comparison.methods for settings in (DEFAULT, TUNED)]
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

    return {
        "leak: test": _rate("test", "leak_rate"),
        "leak: unseen attributes": _rate("unseen_attributes", "leak_rate"),
        "leak: unseen subjects": _rate("unseen_subjects", "leak_rate"),
        "refused: test": _rate("test", "rta_sensitive"),
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


def average_columns() -> dict[str, Figure]:
    """Return the paper's Safety and Utility, each followed by its parts, in the form of `columns`."""

    def average(kind: str, task: str | None) -> Figure:
        def figure(result: Mapping[str, Any]) -> float | None:
            found = result.get("averages", {}).get(kind, {})
            return found.get("value") if task is None else found.get("parts", {}).get(task)

        return figure

    found: dict[str, Figure] = {}
    for kind, parts in (("safety", SAFETY_PARTS), ("utility", UTILITY_PARTS)):
        found[kind.capitalize()] = average(kind, None)
        found |= {f"{kind.capitalize()}: {_TASK_NAMES[task]}": average(kind, task) for task in parts}
    return found


def sweep_columns() -> dict[str, Figure]:
    """Return the figures of the table of a sweep, in the form of `columns`."""
    return {
        "refused: test": _rate("test", "rta_sensitive"),
        "answered: test": _rate("test", "answer_rate_benign"),
        "EtA: test": _rate("test", "eta"),
        "leak: test": _rate("test", "leak_rate"),
        "refused: rungs 4-8": lambda result: result.get("collateral"),
        **average_columns(),
    }


def _rate(split: str, name: str) -> Figure:
    return lambda result: result["rates"].get(split, {}).get(name)


def mean_and_deviation(values: Sequence[float | None]) -> str:
    """Format the mean of the known values, with their standard deviation; "-" without any."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.3f}{spread}"


def tables(comparison: Comparison) -> dict[str, Cells]:
    """Return the test tables by title: the figures and the paper's averages of each method, or those of a sweep."""
    if comparison.sweep is not None:
        return {f"Sweep of {comparison.sweep}": _sweep_cells(comparison)}
    return {
        "Test": _cells(comparison, columns(comparison)),
        "The paper's averages": _cells(comparison, average_columns()),
    }


def _cells(comparison: Comparison, figures: Mapping[str, Figure]) -> Cells:
    body = []
    for method, settings, results in rows(comparison):
        tier = "" if method == UNEDITED else str(METHODS[method].tier)
        body.append([method, tier, "" if method == UNEDITED else settings, *_values(figures, results)])
    return ["method", "tier", "settings", *figures, "seeds"], body


def _sweep_cells(comparison: Comparison) -> Cells:
    figures = sweep_columns()
    body = [[UNEDITED, "", *_values(figures, results)] for _, _, results in rows(comparison)]
    for method, value, results in sweep_rows(comparison):
        body.append([method, f"{value:g}", *_values(figures, results)])
    return ["method", str(comparison.sweep), *figures, "seeds"], body


def _values(figures: Mapping[str, Figure], results: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = [mean_and_deviation([figure(result) for result in results]) for figure in figures.values()]
    return [*shown, str(len(results))]


def sweep_rows(comparison: Comparison) -> Iterator[tuple[str, float, list[dict[str, Any]]]]:
    """Yield method, value of the swept setting and the results of the finished seeds."""
    for method in comparison.methods:
        of_seeds = [comparison.swept_jobs(seed, method) for seed in range(comparison.seeds)]
        for jobs in zip(*of_seeds, strict=True):
            found = [result for job in jobs if (result := comparison.result(job)) is not None]
            swept = jobs[0].swept
            if found and swept is not None:
                yield method, swept[1], found


def markdown(comparison: Comparison) -> str:
    """Return the tables of tries and of test results as Markdown."""
    lines = []
    if comparison.tuned and comparison.methods:
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
    for title, (titles, body) in tables(comparison).items():
        lines += [f"{title} (mean ± standard deviation over seeds):\n", f"| {' | '.join(titles)} |"]
        lines.append("| --- |" + " ---: |" * (len(titles) - 1))
        lines += [*(f"| {' | '.join(row)} |" for row in body), ""]
    return "\n".join(lines)


def split_page(file: Path, name: str) -> tuple[str, str]:
    """Return a Markdown file up to and with the line `<!-- NAME -->`, and from the line `<!-- end of NAME -->` on.

    Raises:
        DataFormatError: the file is missing, or does not have each of the two lines once.
    """
    first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    if not file.is_file():
        raise DataFormatError(
            f"{file} is no file; name a Markdown file with the lines {first.strip()} and {last.strip()}"
        )
    page = file.read_text(encoding="utf-8")
    if page.count(first) != 1 or page.count(last) != 1 or page.index(first) > page.index(last):
        raise DataFormatError(f"{file} needs the line {first.strip()} once, and behind it {last.strip()}; add them")
    return page[: page.index(first) + len(first)], page[page.index(last) :]


def insert_tables(file: Path, name: str, text: str) -> None:
    """Replace what stands between the two lines of `split_page`.

    Raises:
        DataFormatError: see `split_page`.
    """
    before, after = split_page(file, name)
    with atomic_write(file) as draft:
        draft.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def draw_sweep(comparison: Comparison, file: Path) -> None:
    """Plot refusals of sensitive and answers to benign queries against the swept setting, as a PNG (the paper's figure 4)."""
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(7, 4.5), layout="constrained")
    axes = plot.add_subplot()
    found = list(sweep_rows(comparison))
    for number, method in enumerate(comparison.methods):
        points = [(value, results) for name, value, results in found if name == method]
        for title, style in (("refused: test", "o-"), ("answered: test", "s--")):
            figure = sweep_columns()[title]
            means = [statistics.fmean(v for r in results if (v := figure(r)) is not None) for _, results in points]
            axes.plot([value for value, _ in points], means, style, color=f"C{number}", label=f"{method}, {title}")
    axes.set_xlabel(str(comparison.sweep))
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with atomic_write(file) as draft:
        plot.savefig(draft, format="png", dpi=110)


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
