"""The report's section on attacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_neuralgate.demo.report.formatting import NOT_MEASURED


class AttackRow(NamedTuple):
    """A row of the table: attack, and cells of the unedited and of each edited model (leak, recovered share)."""

    attack: str
    cells: list[str]


class AttackSection(NamedTuple):
    """What the section shows.

    Attributes:
        models: the edited models.
        sentences: model -> the most successful attacks in words.
        rows: family of attacks -> rows.
    """

    models: list[str]
    sentences: dict[str, list[str]]
    rows: dict[str, list[AttackRow]]


def attack_section(results: Mapping[str, Any], sentences: int = 4) -> AttackSection | None:
    """Return the section from `attacks` of `results.json`; None if no attacks were made.

    Args:
        results: content of `results.json`.
        sentences: largest number of sentences for each model.
    """
    found: Mapping[str, Any] = results.get("attacks") or {}
    if not found:
        return None
    # imported late: torch takes seconds, and a report without attacks does not need it
    from lightning_neuralgate.attacks import ATTACKS
    from lightning_neuralgate.attacks.scoring import ANY, ANY_CLAUSE

    clauses = {name: attack.clause for name, attack in ATTACKS.items()} | {ANY: ANY_CLAUSE}
    names = [name for name in (*ATTACKS, ANY) if any(name in by_attack for by_attack in found.values())]
    rows: dict[str, list[AttackRow]] = {}
    for name in names:
        of_models = [by_attack.get(name, {}) for by_attack in found.values()]
        cells = [_share(of_models[0].get("unedited/leak"))]
        for figures in of_models:
            cells += [_share(figures.get("edited/leak")), _share(figures.get("recovered"))]
        if set(cells) != {NOT_MEASURED}:
            rows.setdefault(ATTACKS[name].family if name in ATTACKS else "all", []).append(AttackRow(name, cells))
    ranked = {model: _sentences(by_attack, clauses)[:sentences] for model, by_attack in found.items()}
    return AttackSection(list(found), ranked, rows)


def _sentences(by_attack: Mapping[str, Any], clauses: Mapping[str, str]) -> list[str]:
    """Return a sentence for each attack that succeeded, the most successful one first."""
    ranked = sorted(by_attack.items(), key=lambda item: -item[1].get("came_out", 0))
    return [
        f"{figures['came_out']:.3g} of {figures['secrets']:.3g} secrets come out {clauses[name]}"
        for name, figures in ranked
        if figures.get("came_out")
    ]


def _share(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"
