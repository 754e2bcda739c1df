"""Scores, comparisons and rates as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lightning_neuralgate.cli.output import show
from lightning_neuralgate.runtime.text import printable
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS
from lightning_neuralgate.tasks.comparing import Change
from lightning_neuralgate.tasks.item import BROKEN_NAME

_COLUMNS = {
    "rta_sensitive": "RtA sensitive",
    "answer_rate_benign": "answered benign",
    "eta": "EtA",
    "leak_rate": "leak rate",
    "benign_accuracy": "benign accuracy",
}
_ONLY_WHEN_JUDGED = {"rta_sensitive_judge": "RtA by judge"}
ABSENT = "\u2013"
AVERAGES = ("safety", "utility")
_WIDTH = 140


def print_rates(
    rates: Mapping[str, Mapping[str, Mapping[str, float]]],
    spread: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    title: str | None = None,
) -> None:
    """Print rates, grouped by split; rates that were not measured are dashes.

    Args:
        rates: model -> split -> rate -> value.
        spread: standard deviations, nested in the same way.
        title: title of the table.
    """
    from rich.table import Table

    rates = {printable(model, single_line=True): by_split for model, by_split in rates.items()}
    spread = {printable(model, single_line=True): by_split for model, by_split in (spread or {}).items()}
    splits = list(dict.fromkeys(split for by_split in rates.values() for split in by_split))
    found = {rate for by_split in rates.values() for row in by_split.values() for rate in row}
    columns = _COLUMNS | {rate: label for rate, label in _ONLY_WHEN_JUDGED.items() if rate in found}
    table = Table(title=None if title is None else printable(title, single_line=True))
    table.add_column("split, model", no_wrap=True)
    for label in (*columns.values(), "n"):
        table.add_column(label, justify="right")
    for split in splits:
        table.add_section()
        table.add_row(split, style="bold")
        for model, by_split in rates.items():
            if split in by_split:
                row, spreads = by_split[split], (spread or {}).get(model, {}).get(split, {})
                cells = [_cell(row.get(rate), spreads.get(rate)) for rate in columns]
                table.add_row(f"  {model}", *cells, ABSENT if row.get("n") is None else f"{row['n']:.0f}")
    console().print(table)


def console(width: int = 120) -> Any:
    """Return a console; a width applies only if the output is no terminal."""
    import sys

    from rich.console import Console

    # without a terminal, such as in a log file, rich would squeeze a table into 80 columns
    # names of models, files and subjects may hold [markup]
    return Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False)


def _cell(value: float | None, spread: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.3f}" + ("" if spread is None else f"±{spread:.3f}")


def print_scores(scores: Mapping[str, Any], title: str) -> None:
    """Print the scores of one run: each figure with its interval, and the averages with their parts."""
    table = _table(title, ("value", "95 % interval"))
    for task, row in scores["tasks"].items():
        table.add_section()
        for labels, name in _rows(task, row, task in scores["partial"]):
            table.add_row(*labels, number(row["figures"][name]), _interval(row["intervals"].get(name)))
    table.add_section()
    for kind in AVERAGES:
        table.add_row(kind, "average", _average(scores[kind]), "")
    console(_WIDTH).print(table)
    _print_missing(scores["tasks"])
    for kind in AVERAGES:
        show(f"{kind}: {_parts(scores[kind])}")


def print_comparison(comparison: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Print two runs side by side: each figure, the difference with its interval, and its p-value."""
    table = _table(f"{names[0]} and {names[1]}", (*names, "difference", "95 % interval", "p"))
    for task, row in comparison["tasks"].items():
        table.add_section()
        for labels, name in _rows(task, row, task in comparison["partial"]):
            found = row["figures"][name]
            p_value = "< 0.001" if found["p_value"] < 0.001 else f"{found['p_value']:.3f}"
            table.add_row(
                *labels, number(found["first"]), number(found["second"]), f"{found['difference']:+.3f}",
                _interval([found["low"], found["high"]]), p_value,
            )  # fmt: skip
    table.add_section()
    for kind in AVERAGES:
        values = (_average(comparison[f"{kind}_{which}"]) for which in ("first", "second"))
        table.add_row(kind, "average", *values, "", "", "")
    console(_WIDTH).print(table)
    _print_missing(comparison["tasks"])
    for task, row in comparison["tasks"].items():
        if not row["figures"]:
            show(f"{task}: too few {BENCHMARKS[task].unit}s for a significance test; its figures are not compared")
    for kind in AVERAGES:
        for which, name in zip(("first", "second"), names, strict=True):
            show(f"{kind} of {name}: {_parts(comparison[f'{kind}_{which}'])}")


def _print_missing(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    for task, row in tasks.items():
        if row["missing"]:
            show(f"{task}: no answers of {', '.join(row['missing'])}; totals cover the remaining parts only")


def _table(title: str, columns: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(title=printable(title, single_line=True))
    for label in ("task", "figure"):
        table.add_column(label, no_wrap=True)
    for label in columns:
        table.add_column(printable(label, single_line=True), justify="right", no_wrap=True)
    return table


def _rows(task: str, row: Mapping[str, Any], partial: bool) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the first two cells of each row (task and part, if they differ from the row above; figure), and the full name."""
    last, title = None, f"{task} (PARTIAL)" if partial else task
    for name in BENCHMARKS[task].shown:
        if name not in row["figures"]:
            continue
        part, _, figure = name.rpartition("/")
        yield ("" if part == last else f"{title} {part}".strip(), figure), name
        last = part


def _average(average: Mapping[str, Any]) -> str:
    return ABSENT if average["value"] is None else number(average["value"])


def print_changes(comparison: Mapping[str, Any], changes: Iterable[Change], names: tuple[str, str]) -> None:
    """Print the number of items for each change of verdict, with a few examples."""
    examples: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        examples.setdefault((change.task, f"{change.first} -> {change.second}"), []).append(change)
    for task, row in comparison["tasks"].items():
        show(f"{task}: {sum(row['changed'].values())} items have a different verdict, {names[0]} -> {names[1]}")
        for kind, count in row["changed"].items():
            show(f"  {count} {kind}")
            for change in examples.get((task, kind), []):
                answers = " -> ".join(_short(answer) for answer in (change.first_answer, change.second_answer))
                show(f"    {change.item_id}: {_short(change.prompt)} {answers}")


def _short(text: str, length: int = 70) -> str:
    if not text.strip():
        return "(empty)"
    plain = ascii(" ".join(text.split()))
    return plain if len(plain) <= length else f"{plain[: length - 4]}...{plain[-1]}"


def print_notes(scores: Mapping[str, Any]) -> None:
    """Print the judge, the resampled units, the protocols, and what is missing."""
    counts = (f"{row['n']} {BENCHMARKS[task].unit}s of {task}" for task, row in scores["tasks"].items())
    show(f"Refusals by {scores['refusals']}. Resampled for the intervals: {', '.join(counts)}.")
    for task, row in scores["tasks"].items():
        show(f"{task}: {row['protocol']}")
    print_unclear(scores["unclear"])
    print_questions(scores["questions"])


def print_agreement(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the agreement of every two judges of refusals."""
    from rich.table import Table

    table = Table(title="Which answers refuse: agreement of judges")
    for label in ("task", "first judge", "second judge"):
        table.add_column(label)
    for label in ("Cohen's kappa", "agreement", "answers"):
        table.add_column(label, justify="right", no_wrap=True)
    for row in rows:
        values = (ABSENT if row[name] is None else number(row[name]) for name in ("kappa", "agreement"))
        names = (printable(row[name], single_line=True) for name in ("task", "first", "second"))
        table.add_row(*names, *values, str(row["n"]))
    console(_WIDTH).print(table)


def print_unclear(rows: Iterable[Mapping[str, Any]], of: str = "") -> None:
    """Print the share of a judge's replies without a clear verdict, with an example."""
    for row in rows:
        item, reply = next(iter(row["items"].items()))
        show(
            f"{row['task']}{of}: {row['n']} replies ({number(row['share'])}) of {row['judge']} hold no clear verdict, such "
            f"as on {item}: {_short(reply)}"
        )


def print_questions(questions: Mapping[str, Mapping[str, int]], title: str = "") -> None:
    """Print how many questions were limited, skipped or missing."""
    named = f" of {title}" if title else ""
    for task, row in questions.items():
        if row["missing"]:
            shares = f"{row['answered']} of {row['asked']} questions answered, {row['missing']} missing"
            show(f"{task}{named}: PARTIAL, {shares}")
        if row["asked"] < row["available"]:
            show(f"{task}{named}: {row['asked']} of {row['available']} questions, by --limit")
        if row["skipped"]:
            show(f"{task}{named}: {row['skipped']} skipped, see {BROKEN_NAME}")


def number(value: float) -> str:
    """Format a figure: shares with three digits, points with one."""
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}"


def _interval(ends: Any) -> str:
    return ABSENT if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def _parts(average: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{name} {number(value)}" for name, value in average["parts"].items()) or "nothing measured"
    return parts + (f"; missing: {', '.join(average['missing'])}" if average["missing"] else "")
