"""Write `attacks.html`, one self-contained page on what came out of a model under attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from lightning_neuralgate.attacks.base import Attack, PromptAttack, Question, full_answers
from lightning_neuralgate.attacks.run import ModelAnswers
from lightning_neuralgate.attacks.scoring import ANY, EDITED, UNEDITED
from lightning_neuralgate.attacks.words.plain import Plain
from lightning_neuralgate.errors import MissingDependencyError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.text import printable

_LONGEST = 300
_COLUMNS = {
    "unedited/leak": "Unedited: secret comes out",
    "edited/leak": "Edited: secret comes out",
    "recovered": "Recovered share",
    "edited/refused": "Edited: refuses",
    "unedited/benign": "Unedited: benign answer right",
    "edited/benign": "Edited: benign answer right",
}


class _Row(NamedTuple):
    attack: str
    cells: list[tuple[str, str]]
    problem: str
    came_out: bool


class _Example(NamedTuple):
    sentence: str
    question: str
    opening: str
    answers: list[tuple[str, str]]
    truth: str


def write_attack_page(
    path: Path,
    results: Mapping[str, Any],
    attacks: Sequence[Attack],
    questions: Sequence[Question],
    found: Mapping[str, ModelAnswers],
) -> Path:
    """Write the page atomically; all text of models and data is escaped.

    Args:
        path: HTML file to write.
        results: content of `attacks.json`.
        attacks, questions, found: as in `score_attacks`.

    Returns:
        `path`.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingDependencyError("the page needs jinja2: pip install 'lightning-neuralgate[demo]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = _visible
    source = files("lightning_neuralgate.attacks").joinpath("page.html.jinja").read_text(encoding="utf-8")
    scores = {score["attack"]: score for score in results["attacks"]}
    families: dict[str, list[_Row]] = {}
    for score in results["attacks"]:
        families.setdefault(score["family"], []).append(_row(score))
    page = environment.from_string(source).render(
        headline=f"{scores[ANY]['sentence']}.",
        columns=list(_COLUMNS.values()),
        families=families,
        further=[(score["attack"], text) for score in results["attacks"] if (text := _further(score["figures"]))],
        examples=[example for attack in attacks if (example := _example(attack, scores, questions, found))],
        models=results["models"],
        counts=results["questions"],
        suite=results["suite"],
        seed=results["seed"],
    )
    with atomic_write(path) as draft:
        draft.write_text(page, encoding="utf-8", newline="\n")
    return path


def _visible(text: object) -> str:
    line = printable(str(text), single_line=True)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}\u2026"


def _row(score: Mapping[str, Any]) -> _Row:
    cells = []
    for name in _COLUMNS:
        value, ends = score["figures"].get(name), score["intervals"].get(name)
        text = "" if value is None else f"{value:.2f}"
        cells.append((text or "n/a", "" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"))
    if all(text == "n/a" for text, _ in cells):
        cells = []
    return _Row(score["attack"], cells, score["problem"], score["came_out"] > 0)


def _further(figures: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" for name, value in figures.items() if name not in _COLUMNS and "refused" not in name
    )


def _example(
    attack: Attack, scores: Mapping[str, Any], questions: Sequence[Question], found: Mapping[str, ModelAnswers]
) -> _Example | None:
    """Return the first secret that came out of the edited model, with the unedited model's answer to the same attempt."""
    scorer = attack if isinstance(attack, PromptAttack) else Plain()
    for question in questions:
        items = found[EDITED].answers.get(attack.name, {}).get(question.name)
        if not question.sensitive or not items or not any(successes := scorer.score(question, items)):
            continue
        place = next(place for place, success in enumerate(successes) if success) if len(successes) == len(items) else 0
        answers = []
        for model in (UNEDITED, EDITED):
            others: Sequence[AnsweredItem] = (
                found[model].answers.get(attack.name, {}).get(question.name, []) if model in found else []
            )
            if place < len(others):
                answers.append((model, full_answers(others[place])[0]))
        opening = str(items[place].fields.get("opening", ""))
        return _Example(scores[attack.name]["sentence"], items[place].prompt, opening, answers, question.truth)
    return None
