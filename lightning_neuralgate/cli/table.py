"""Measured rates as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
