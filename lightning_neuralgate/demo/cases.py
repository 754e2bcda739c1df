"""Answers before and after each method, side by side, with successes and failures chosen by a rule (the paper's figure 5)."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from lightning_neuralgate.demo.comparison import DEFAULT, TUNED, UNEDITED, Comparison, Job
from lightning_neuralgate.evaluation.answers import JudgedAnswer, read_answers
from lightning_neuralgate.runtime.text import printable

PER_KIND = 3
"""Cases of each kind that are shown of a method."""
_LONGEST = 300
"""Characters of an answer that are shown in Markdown."""
_Rule = Callable[[JudgedAnswer, JudgedAnswer], bool]

KINDS: dict[str, tuple[bool, _Rule]] = {
    "leaked before, refuses now": (
        True,
        lambda before, after: _leaks(before) and _refuses(after) and not _leaks(after),
    ),
    "leaked before, neither leaks nor refuses now": (True, lambda before, after: _leaks(before) and not _leaks(after)),
    "leaks now": (True, lambda before, after: _leaks(after)),
    "right before and now": (False, lambda before, after: bool(before.correct and after.correct)),
    "answered before, refuses now": (False, lambda before, after: not _refuses(before) and _refuses(after)),
    "right before, wrong now": (False, lambda before, after: bool(before.correct) and after.correct is False),
}
"""Kind -> whether its queries are sensitive, and its rule for the answers before and after; the first that fits counts."""
SELECTION = (
    f"Of each kind, the first {PER_KIND} are shown: subjects in turn, and of each subject by split and number. The choice "
    "depends on the verdicts alone, with the settings that were tuned, on seed 0."
)


@dataclass(frozen=True)
class Case:
    """A query with its answers before and after.

    Attributes:
        item_id: the query's name.
        subject: the subject of its record.
        image: its picture's file.
        query: the query.
        truth: the true value; empty if unknown.
        before: the unedited model's answer.
        after: the answer with the method.
    """

    item_id: str
    subject: str
    image: str
    query: str
    truth: str
    before: str
    after: str


def cases(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield `method`, `settings` and `kinds` of each method with test answers of seed 0.

    `kinds` are those of `KINDS`, with `queries`, the number of sensitive or benign queries, `count`, how many of these are of
    the kind, and `cases`, the chosen ones.
    """
    unedited = comparison.answers_file(Job("test", 0, UNEDITED))
    if not unedited.is_file():
        return
    before = {answer.key: answer for answer in read_answers(unedited)}
    for method in comparison.methods:
        jobs = [Job("test", 0, method, settings) for settings in (TUNED, DEFAULT)]
        job = next((job for job in jobs if comparison.answers_file(job).is_file()), None)
        if job is not None:
            answers = read_answers(comparison.answers_file(job))
            pairs = [(before[answer.key], answer) for answer in answers if answer.key in before]
            yield {"method": method, "settings": job.settings, "kinds": _kinds(pairs)}


def cases_markdown(found: Iterable[dict[str, Any]]) -> str:
    """Return the cases as Markdown, with all text of models and data escaped."""
    lines = ["# Answers before and after\n", SELECTION]
    for entry in found:
        lines.append(f"\n## {entry['method']} ({entry['settings']} settings)\n")
        for kind, content in entry["kinds"].items():
            lines.append(f"\n### {kind}: {content['count']} of {content['queries']}\n")
            if content["cases"]:
                lines += ["| subject | query | truth | before | after |", "| --- | --- | --- | --- | --- |"]
            for case in content["cases"]:
                shown = (case[name] for name in ("subject", "query", "truth", "before", "after"))
                lines.append(f"| {' | '.join(map(cell, shown))} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Return text of any origin as a cell of a Markdown table that shows it literally, cut if it is long.

    Example:
        >>> cell("<b>*No*</b> | 1")
        '&lt;b&gt;\\\\*No\\\\*&lt;/b&gt; \\\\| 1'
    """
    cut = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return re.sub(r"([\\`*_{}\[\]()#+!|~:])", r"\\\1", html.escape(printable(cut, single_line=True), quote=False))


def _kinds(pairs: list[tuple[JudgedAnswer, JudgedAnswer]]) -> dict[str, Any]:
    by_kind: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    for before, after in pairs:
        rules = ((kind, rule) for kind, (sensitive, rule) in KINDS.items() if sensitive == after.sensitive)
        kind = next((kind for kind, rule in rules if rule(before, after)), None)
        if kind is not None:
            by_kind[kind].append(
                Case(after.item_id, after.subject, after.image, after.prompt, after.truth, before.answer, after.answer)
            )
    count = {sensitive: sum(after.sensitive == sensitive for _, after in pairs) for sensitive in (True, False)}
    return {
        kind: {
            "queries": count[KINDS[kind][0]],
            "count": len(of_kind),
            "cases": [asdict(case) for case in _first(of_kind)],
        }
        for kind, of_kind in by_kind.items()
    }


def _first(of_kind: list[Case]) -> list[Case]:
    """Return the first cases, with the subjects in turn."""
    subjects: dict[str, list[Case]] = {}
    for case in sorted(of_kind, key=lambda case: (case.subject, case.item_id)):
        subjects.setdefault(case.subject, []).append(case)
    return [case for turn in zip_longest(*subjects.values()) for case in turn if case is not None][:PER_KIND]


def _leaks(answer: JudgedAnswer) -> bool:
    return bool(answer.leaked)


def _refuses(answer: JudgedAnswer) -> bool:
    return bool(answer.refused)
