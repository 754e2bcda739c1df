"""Scores of tasks as a table in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lightning_neuralgate.tasks.comparing import Change
from lightning_neuralgate.tasks.item import BROKEN_NAME
from lightning_neuralgate.tasks.scores import SHOWN

_COLUMNS = {
    "rta_sensitive": "RtA sensitive",
    "answer_rate_benign": "answered benign",
    "eta": "EtA",
    "leak_rate": "leak rate",
    "benign_accuracy": "benign accuracy",
}
_ONLY_WHEN_JUDGED = {"rta_sensitive_judge": "RtA by judge"}
ABSENT = "\u2013"


def print_rates(
    rates: Mapping[str, Mapping[str, Mapping[str, float]]],
    spread: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    title: str | None = None,
) -> None:
    """Print rates, grouped by split; a rate that was not measured is a dash.

    Args:
        rates: model -> split -> rate -> value.
        spread: standard deviations, nested in the same way.
        title: what stands above.
    """
    from rich.table import Table

    splits = list(dict.fromkeys(split for by_split in rates.values() for split in by_split))
    found = {rate for by_split in rates.values() for row in by_split.values() for rate in row}
    columns = _COLUMNS | {rate: label for rate, label in _ONLY_WHEN_JUDGED.items() if rate in found}
    table = Table(title=title)
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
                table.add_row(f"  {model}", *cells, _count(row.get("n")))
    console().print(table)


def console(width: int = 120) -> Any:
    """The terminal, or what stands in its place, of some width."""
    import sys

    from rich.console import Console

    # where there is no terminal, such as in a log file, rich would squeeze a table into 80 columns
    return Console(width=None if sys.stdout.isatty() else width)


def _cell(value: float | None, spread: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.3f}" + ("" if spread is None else f"±{spread:.3f}")


def _count(value: Any) -> str:
    return ABSENT if value is None else f"{value:.0f}"


_WIDTH = 140
UNITS = {"privacy_pair": "record", "mme": "image"}
"""What is drawn again for intervals, where it is not the item."""
AVERAGES = ("safety", "utility")


def print_scores(scores: Mapping[str, Any], title: str) -> None:
    """Print the scores of one run: each figure with its interval, and the averages with their parts."""
    table = _table(title, ("value", "95 % interval"))
    for task, told in scores["tasks"].items():
        table.add_section()
        for labels, name in _rows(task, told, task in scores["partial"]):
            table.add_row(*labels, number(told["figures"][name]), _interval(told["intervals"].get(name)))
    table.add_section()
    for kind in AVERAGES:
        table.add_row(kind, "average", _average(scores[kind]), "")
    console(_WIDTH).print(table)
    _print_missing(scores["tasks"])
    for kind in AVERAGES:
        print(f"{kind}: {_parts(scores[kind])}")


def print_comparison(comparison: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Print two runs side by side: each figure, the difference with its interval, and its p-value."""
    table = _table(f"{names[0]} and {names[1]}", (*names, "difference", "95 % interval", "p"))
    for task, told in comparison["tasks"].items():
        table.add_section()
        for labels, name in _rows(task, told, task in comparison["partial"]):
            found = told["figures"][name]
            table.add_row(
                *labels, number(found["first"]), number(found["second"]), f"{found['difference']:+.3f}",
                _interval([found["low"], found["high"]]), _p_value(found["p_value"]),
            )  # fmt: skip
    table.add_section()
    for kind in AVERAGES:
        values = (_average(comparison[f"{kind}_{which}"]) for which in ("first", "second"))
        table.add_row(kind, "average", *values, "", "", "")
    console(_WIDTH).print(table)
    _print_missing(comparison["tasks"])
    for task, told in comparison["tasks"].items():
        if not told["figures"]:
            print(f"one {UNITS.get(task, 'item')} of {task} says nothing about chance; its figures are not compared")
    for kind in AVERAGES:
        for which, name in zip(("first", "second"), names, strict=True):
            print(f"{kind} of {name}: {_parts(comparison[f'{kind}_{which}'])}")


def _print_missing(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    for task, told in tasks.items():
        if told["missing"]:
            print(f"{task}: nothing of {', '.join(told['missing'])}; what is over all parts is over the others alone")


def _table(title: str, columns: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for label in ("task", "figure"):
        table.add_column(label, no_wrap=True)
    for label in columns:
        table.add_column(label, justify="right", no_wrap=True)
    return table


def _rows(task: str, told: Mapping[str, Any], partial: bool) -> Iterator[tuple[tuple[str, str], str]]:
    """What stands in the first two columns, and the figure's whole name; the task and its part where they begin."""
    last, title = None, f"{task} (PARTIAL)" if partial else task
    for name in SHOWN[task]:
        if name not in told["figures"]:
            continue
        part, _, figure = name.rpartition("/")
        yield ("" if part == last else f"{title} {part}".strip(), figure), name
        last = part


def _average(average: Mapping[str, Any]) -> str:
    return ABSENT if average["value"] is None else number(average["value"])


def print_changes(comparison: Mapping[str, Any], changes: Iterable[Change], names: tuple[str, str]) -> None:
    """Print how many items changed from what to what, with a few of them."""
    examples: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        examples.setdefault((change.task, f"{change.first} -> {change.second}"), []).append(change)
    for task, told in comparison["tasks"].items():
        print(f"{task}: {sum(told['changed'].values())} items have another verdict, {names[0]} -> {names[1]}")
        for kind, count in told["changed"].items():
            print(f"  {count} {kind}")
            for change in examples.get((task, kind), []):
                said = " -> ".join(_short(answer) for answer in (change.first_answer, change.second_answer))
                print(f"    {change.item_id}: {_short(change.prompt)} {said}")


def _short(text: str, length: int = 70) -> str:
    if not text.strip():
        return "(empty)"
    plain = ascii(" ".join(text.split()))
    return plain if len(plain) <= length else f"{plain[: length - 4]}...{plain[-1]}"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def print_notes(scores: Mapping[str, Any]) -> None:
    """What has to be known to read the numbers."""
    counts = (f"{told['n']} {UNITS.get(task, 'item')}s of {task}" for task, told in scores["tasks"].items())
    print(f"Refusals by {scores['refusals']}. Drawn again for the intervals: {', '.join(counts)}.")
    for task, told in scores["tasks"].items():
        print(f"{task}: {told['protocol']}")
    print_unclear(scores["unclear"])
    print_questions(scores["questions"])


def print_agreement(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print how far every two judges agree on which answers refuse."""
    from rich.table import Table

    table = Table(title="Which answers refuse: agreement of judges")
    for label in ("task", "judge", "other judge"):
        table.add_column(label)
    for label in ("Cohen's kappa", "agreement", "answers"):
        table.add_column(label, justify="right", no_wrap=True)
    for row in rows:
        values = (ABSENT if row[name] is None else number(row[name]) for name in ("kappa", "agreement"))
        table.add_row(row["task"], row["first"], row["second"], *values, str(row["n"]))
    console(_WIDTH).print(table)


def print_unclear(rows: Iterable[Mapping[str, Any]], of: str = "") -> None:
    """Print which share of a judge's replies held no verdict, with one of them."""
    for row in rows:
        item, reply = next(iter(row["items"].items()))
        print(
            f"{row['task']}{of}: {row['n']} replies ({number(row['share'])}) of {row['judge']} hold no clear verdict, such "
            f"as on {item}: {_short(reply)}"
        )


def print_questions(questions: Mapping[str, Mapping[str, int]], title: str = "") -> None:
    """Print of each task what keeps its figures from being those of all its questions."""
    named = f" of {title}" if title else ""
    for task, told in questions.items():
        if told["missing"]:
            shares = f"{told['answered']} of {told['asked']} questions answered, {told['missing']} not asked"
            print(f"{task}{named}: PARTIAL, {shares}")
        if told["asked"] < told["available"]:
            print(f"{task}{named}: {told['asked']} of {told['available']} questions were to be asked, by --limit")
        if told["skipped"]:
            print(f"{task}{named}: skipped: {told['skipped']}, which {BROKEN_NAME} names")


def number(value: float) -> str:
    """A figure: shares with three digits, points with one."""
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}"


def _interval(ends: Any) -> str:
    return ABSENT if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def _parts(average: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} {number(value)}" for name, value in average["parts"].items()) or "nothing measured"
    return told + (f"; missing: {', '.join(average['missing'])}" if average["missing"] else "")
