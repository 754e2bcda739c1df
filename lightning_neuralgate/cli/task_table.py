"""Scores of tasks as a table in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_neuralgate.cli.table import ABSENT, console
from lightning_neuralgate.tasks.comparing import Change
from lightning_neuralgate.tasks.scores import SHOWN


def print_scores(scores: Mapping[str, Any], title: str) -> None:
    """Print the scores of one run: each figure with its interval, and the averages with their parts."""
    from rich.table import Table

    table = Table(title=title)
    for label, justify in (("task", "left"), ("figure", "left"), ("value", "right"), ("95 % interval", "right")):
        table.add_column(label, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for task, told in scores["tasks"].items():
        table.add_section()
        label = f"{task} ({told['n']})"
        for name in SHOWN[task]:
            if name in told["figures"]:
                ends = told["intervals"].get(name)
                table.add_row(label, name, number(told["figures"][name]), _interval(ends))
                label = ""
    table.add_section()
    for kind in ("safety", "utility"):
        average = scores[kind]
        table.add_row(kind, _parts(average), ABSENT if average["value"] is None else number(average["value"]), "")
    console().print(table)


def print_comparison(comparison: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Print two runs side by side: each figure, the difference with its interval, and its p-value."""
    from rich.table import Table

    table = Table(title=f"{names[0]} and {names[1]}")
    columns = ("task", "figure", names[0], names[1], "difference", "95 % interval", "p")
    for place, label in enumerate(columns):
        table.add_column(label, justify="left" if place < 2 else "right", no_wrap=place != 2)
    for task, told in comparison["tasks"].items():
        table.add_section()
        label = f"{task} ({told['n']})"
        for name in SHOWN[task]:
            if name in told["figures"]:
                found = told["figures"][name]
                table.add_row(
                    label, name, number(found["first"]), number(found["second"]), f"{found['difference']:+.3f}",
                    _interval([found["low"], found["high"]]), _p_value(found["p_value"]),
                )  # fmt: skip
                label = ""
    console().print(table)


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
                said = f"{_short(change.first_answer)} -> {_short(change.second_answer)}"
                print(f"    {change.item_id}: {_short(change.prompt)} {said}")


def _short(text: str, length: int = 70) -> str:
    plain = ascii(" ".join(text.split()))
    return plain if len(plain) <= length else f"{plain[: length - 4]}...{plain[-1]}"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def print_notes(scores: Mapping[str, Any]) -> None:
    """What has to be known to read the numbers."""
    print(f"Refusals by {scores['refusals']}. In brackets: items, records of privacy_pair, images of mme.")
    for task, told in scores["tasks"].items():
        print(f"{task}: {told['protocol']}")


def number(value: float) -> str:
    """A figure: shares with three digits, points with one."""
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}"


def _interval(ends: Any) -> str:
    return ABSENT if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def _parts(average: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} {number(value)}" for name, value in average["parts"].items())
    missing = f"; missing: {', '.join(average['missing'])}" if average["missing"] else ""
    return f"of {told or 'nothing'}{missing}"
