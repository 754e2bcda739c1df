"""Render `report.html`, one self-contained page on what an edit changed in a vision-language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from lightning_neuralgate.demo.report.attacks import attack_section
from lightning_neuralgate.demo.report.examples import SELECTION_RULE, Example, models_of, select_examples, thumbnail
from lightning_neuralgate.demo.report.formatting import (
    MODEL_NAMES,
    NOT_MEASURED,
    SPLIT_NAMES,
    SPLIT_NOTES,
    percent,
    visible,
)
from lightning_neuralgate.demo.report.frontier import frontier_chart, frontier_points
from lightning_neuralgate.demo.report.ordinary import ACCURACY_MARGIN, REFUSED_MARGIN, OrdinaryQuestions, OrdinaryRow
from lightning_neuralgate.demo.report.plots import LayerShares, gate_chart, rates_chart, shares_chart
from lightning_neuralgate.demo.report.scores import COUNT, METRICS, Scores
from lightning_neuralgate.demo.report.summary import edited_model, key_figures, summarize_scores
from lightning_neuralgate.errors import MissingDependencyError
from lightning_neuralgate.evaluation.answers import JudgedAnswer
from lightning_neuralgate.runtime.files import atomic_write

try:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
except ImportError as error:
    raise MissingDependencyError("the report needs jinja2: pip install 'lightning-neuralgate[demo]'") from error


def write_report(
    path: Path,
    results: Mapping[str, Any],
    answers: Sequence[JudgedAnswer],
    shares: Sequence[LayerShares],
    images: Path,
    other: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report atomically.

    Args:
        path: HTML file to write.
        results: content of `results.json`: metrics by model ("unedited", "gated", "ungated") and split, and `seed`,
            `settings`, `versions`, `seconds`, `refusal_variant`. With several seeds: `seeds`, means, and `spread` (standard
            deviations, nested like the metrics). `intervals`, also nested like the metrics, holds 95 % intervals over
            records as [low, high]. `ladder` and `utility` hold the figures on ordinary questions (model -> figure; model ->
            benchmark -> figure), `ladder_examples` one question of each rung with its answers, `attacks` those under attack
            (model -> attack -> figure). Missing values, None and NaN are shown as not measured.
        answers: answers of all models; a selection is shown with pictures.
        shares: neuron classes of each edited layer and subject.
        images: folder that the image paths of the answers are relative to.
        other: results of a run on another model, shown in the same table.

    Returns:
        `path`.

    Raises:
        DataFormatError: the results hold no model or a value that is not a number, shares do not add up to 1, or a picture
            is missing, unreadable or outside `images`.
    """
    scores, ordinary = Scores(results), OrdinaryQuestions(results)
    runs = [("", scores)]
    if other is not None:
        runs = [(f", {_base_model(results)}", scores), (f", {_base_model(other)}", Scores(other))]
    examples = select_examples(answers)
    first = _first_examples(examples)
    attacks, edit = attack_section(results), edited_model(scores)
    settings = results.get("settings") or {}
    # the template escapes every value but the SVG charts, which are drawn here
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    source = files("lightning_neuralgate.demo.report").joinpath("template.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        summary=summarize_scores(scores, ordinary),
        scores=scores,
        ordinary_models=[(model, _model(model)) for model in ordinary.models],
        ordinary=[
            _OrdinaryTable(heading, columns, [_ordinary_row(ordinary, row) for row in rows])
            for heading, columns, rows in (
                ("The benign ladder", ("refused", "answered", "right"), ordinary.ladder),
                ("Small benchmarks", ("refused", "right"), ordinary.sets),
            )
            if rows
        ],
        contrast=[(_model(model), str(score)) for model, score in ordinary.contrast().items()],
        ordinary_examples=_ordinary_examples(results, ordinary),
        attacks=attacks,
        attack_sentence=next(iter(attacks.sentences.get(edit, ())), "") if attacks and edit else "",
        key_figures=key_figures(scores, ordinary),
        key_edit=_model(edit or "").lower(),
        key_split=next((SPLIT_NOTES.get(split, f"the split {_split(split)}") for split in scores.splits), ""),
        ladder=[_rung(ordinary, row) for row in ordinary.ladder],
        frontier=_frontier(scores, ordinary),
        frontier_points=[
            (model, _model(model), percent(sensitive), percent(refused))
            for model, (refused, sensitive) in frontier_points(scores, ordinary).items()
        ],
        frontier_split=_split(scores.splits[0]).lower() if scores.splits else "",
        model_name=_model,
        margins=(f"{REFUSED_MARGIN:.2f}", f"{ACCURACY_MARGIN:.2f}"),
        metrics={name: METRICS[name] for name in scores.metrics},
        rows=_table(runs),
        rates=[
            (_split(split), Markup(rates_chart(scores, split, f"Rates before and after, {_split(split)}")))
            for split in scores.splits
        ],
        shares=Markup(shares_chart(shares, "Neuron classes of each edited layer and subject")) if shares else None,
        gate=_gate(shares),
        rule=SELECTION_RULE,
        records=len({(row.split, row.record_id) for row in answers}),
        count=len(examples),
        models=[(model, _model(model)) for model in models_of(answers)],
        first_cards=[card for cards in _cards(first, images).values() for card in cards],
        cards=[
            (_split(split), cards)
            for split, cards in _cards([example for example in examples if example not in first], images).items()
        ],
        tau=settings.get("tau") if isinstance(settings, Mapping) else None,
        settings=list(_flat(settings)),
        versions=list(_flat(results.get("versions") or {})),
        seconds=_seconds(results.get("seconds") or {}),
        seeds=scores.seeds,
        variant=results.get("refusal_variant") or NOT_MEASURED,
    )
    with atomic_write(path) as draft:
        draft.write_text(page, encoding="utf-8", newline="\n")
    return path


def _first_examples(examples: Sequence[Example]) -> list[Example]:
    """Return the first example with a sensitive and the first with a benign question."""
    found = (
        next((example for example in examples if example.question.sensitive is sensitive), None)
        for sensitive in (True, False)
    )
    return [example for example in found if example is not None]


def _frontier(scores: Scores, ordinary: OrdinaryQuestions) -> Markup | None:
    if len(frontier_points(scores, ordinary)) < 2:
        return None
    return Markup(frontier_chart(scores, ordinary, "Refusals of sensitive and of ordinary questions"))


def _gate(shares: Sequence[LayerShares]) -> Markup | None:
    if not any(len(layer.classes) for layer in shares):
        return None
    return Markup(gate_chart(shares, "Neurons of each edited layer and subject by class"))


class _Cell(NamedTuple):
    number: str
    interval: str


class _ModelRow(NamedTuple):
    model: str
    cells: list[_Cell]


class _SplitRows(NamedTuple):
    split: str
    note: str
    models: list[_ModelRow]


def _table(runs: Sequence[tuple[str, Scores]]) -> list[_SplitRows]:
    """Return the rows of the table, grouped by split.

    Args:
        runs: runs with the suffix of their model names; the first determines the splits, models and metrics shown.
    """
    scores = runs[0][1]
    return [
        _SplitRows(
            _split(split),
            SPLIT_NOTES.get(split, ""),
            [
                _ModelRow(_model(model) + suffix, [_cell(run, model, split, metric) for metric in scores.metrics])
                for model in scores.models
                for suffix, run in runs
                if model in run.models and split in run.splits
            ],
        )
        for split in scores.splits
    ]


class _OrdinaryRow(NamedTuple):
    label: str
    n: str
    cells: list[tuple[str, bool]]
    judged: bool


class _OrdinaryTable(NamedTuple):
    heading: str
    columns: tuple[str, ...]
    rows: list[_OrdinaryRow]


def _ordinary_row(ordinary: OrdinaryQuestions, row: OrdinaryRow) -> _OrdinaryRow:
    """Return the cells of a row: a number and whether the model has harmed this kind of question, which marks one cell."""
    cells = []
    for model, figures in row.figures.items():
        harm = next((harm for harm in ordinary.harms(model) if harm.kind == row.kind), None)
        cells += [(str(score), harm is not None and column == harm.column) for column, score in figures.items()]
    n = NOT_MEASURED if row.n.value is None else f"{row.n.value:,.0f}"
    return _OrdinaryRow(row.label, n, cells, row.judged)


class _Rung(NamedTuple):
    label: str
    judged: bool
    bars: list[tuple[str, str, str, float]]


def _rung(ordinary: OrdinaryQuestions, row: OrdinaryRow) -> _Rung:
    """Return a rung's refused share by model: model, its name, the share in words and as the length of a bar in percent."""
    bars = []
    for model in ordinary.models:
        refused = row.figures[model]["refused"].value
        bars.append(
            (
                model,
                _model(model),
                NOT_MEASURED if refused is None else percent(refused),
                round(100 * (refused or 0), 1),
            )
        )
    return _Rung(row.label, row.judged, bars)


def _ordinary_examples(
    results: Mapping[str, Any], ordinary: OrdinaryQuestions
) -> list[tuple[str, str, list[str | None]]]:
    """Return kind, question and each model's answer."""
    examples = results.get("ladder_examples") or {}
    return [
        (row.label, example["prompt"], [example["answers"].get(model) for model in ordinary.models])
        for row in ordinary.ladder
        if (example := examples.get(row.kind)) is not None
    ]


def _base_model(results: Mapping[str, Any]) -> str:
    settings = results.get("settings")
    model = settings.get("model") if isinstance(settings, Mapping) else None
    return visible("unknown model" if model is None else model, 40)


def _cell(scores: Scores, model: str, split: str, metric: str) -> _Cell:
    score = scores.get(model, split, metric)
    if metric == COUNT and score.value is not None:
        return _Cell(f"{score.value:,.0f}" if score.value == round(score.value) else f"{score.value:,.1f}", "")
    interval = "" if score.interval is None else "\u2013".join(f"{end:.2f}" for end in score.interval)
    return _Cell(str(score), interval)


def _cards(examples: Sequence[Example], images: Path) -> dict[str, list[dict[str, Any]]]:
    cards: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        question, picture = example.question, thumbnail(example, images)
        card = {"question": question, "picture": picture, "answers": example.answers}
        cards.setdefault(question.split, []).append(card)
    return cards


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested settings to rows: `{"a": {"b": 1}}` becomes `a.b`, 1."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif name:
        plain = isinstance(value, (list, tuple)) and not any(isinstance(item, (list, tuple, Mapping)) for item in value)
        yield name, ", ".join(map(str, value)) if plain and value else value


def _seconds(stages: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = {str(stage).replace("_", " "): s for stage, s in stages.items() if isinstance(s, (int, float))}
    rows = [(stage, f"{seconds:,.1f}") for stage, seconds in known.items()]
    return [*rows, ("total", f"{sum(known.values()):,.1f}")] if rows else []


def _model(model: str) -> str:
    return MODEL_NAMES.get(model, visible(model, 40))


def _split(split: str) -> str:
    return SPLIT_NAMES.get(split, visible(split, 60))
