"""Scores of tasks as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_neuralgate.cli.table import ABSENT, console
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
