"""`report.html`: one self-contained page that shows what an edit did to a vision-language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning_neuralgate.demo.report.examples import RULE, Example, choose, models_of, thumbnail
from lightning_neuralgate.demo.report.formatting import MODEL_NAMES, NOT_MEASURED, SPLIT_NAMES, SPLIT_NOTES, visible
from lightning_neuralgate.demo.report.plots import LayerShares, rates_chart, shares_chart
from lightning_neuralgate.demo.report.scores import COUNT, METRICS, Scores
from lightning_neuralgate.demo.report.summary import lead
from lightning_neuralgate.errors import MissingDependencyError
from lightning_neuralgate.evaluation.answers import JudgedAnswer
from lightning_neuralgate.runtime.files import atomic_write

try:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
except ImportError as error:
    raise MissingDependencyError(
        "the report is written with jinja2: pip install 'lightning-neuralgate[demo]'"
    ) from error


def write_report(
    path: Path,
    results: Mapping[str, Any],
    answers: Sequence[JudgedAnswer],
    shares: Sequence[LayerShares],
    images: Path,
    beside: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report; the file appears whole or not at all.

    Args:
        path: the HTML file to write.
        results: what `results.json` holds: per model ("unedited", "gated", "ungated") and split the metrics, and
            `seed`, `settings`, `versions`, `seconds`, `refusal_variant`. With several seeds `seeds`, means, and
            `spread` (standard deviations, nested like the metrics). `intervals` hold [low, high] instead of each metric,
            the 95 % interval over records. What is absent, None or NaN is shown as such.
        answers: every model's answers; some are shown with their pictures.
        shares: neuron classes of each edited layer and subject.
        images: folder that the answers' pictures are relative to.
        beside: results of the same run on another model, whose numbers stand in the same table.

    Returns:
        `path`.

    Raises:
        DataFormatError: results without a model or with a number that is none, shares that do not add up, a picture
            that is missing, unreadable, or outside `images`.
    """
    page = _render(results, answers, shares, images, beside)
    with atomic_write(path) as draft:
        draft.write_text(page, encoding="utf-8", newline="\n")
    return path


def _render(
    results: Mapping[str, Any],
    answers: Sequence[JudgedAnswer],
    shares: Sequence[LayerShares],
    images: Path,
    beside: Mapping[str, Any] | None,
) -> str:
    scores = Scores(results)
    runs = [("", scores)]
    if beside is not None:
        runs = [(f", {_name_of(results)}", scores), (f", {_name_of(beside)}", Scores(beside))]
    examples = choose(answers)
    settings = results.get("settings") or {}
    # every value is escaped by the template; only what is drawn here counts as markup
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    source = files("lightning_neuralgate.demo.report").joinpath("template.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        lead=lead(scores),
        scores=scores,
        metrics={name: METRICS[name] for name in scores.metrics},
        rows=_table(runs),
        rates=[
            (_split(split), Markup(rates_chart(scores, split, f"Rates before and after, {_split(split)}")))
            for split in scores.splits
        ],
        shares=Markup(shares_chart(shares, "Neuron classes of each edited layer and subject")) if shares else None,
        rule=RULE,
        records=len({(row.split, row.record_id) for row in answers}),
        count=len(examples),
        models=[(model, _model(model)) for model in models_of(answers)],
        cards=[(_split(split), cards) for split, cards in _cards(examples, images).items()],
        tau=settings.get("tau") if isinstance(settings, Mapping) else None,
        settings=list(_flat(settings)),
        versions=list(_flat(results.get("versions") or {})),
        seconds=_seconds(results.get("seconds") or {}),
        seeds=scores.seeds,
        variant=results.get("refusal_variant") or NOT_MEASURED,
    )  # fmt: skip


def _table(runs: Sequence[tuple[str, Scores]]) -> list[tuple[str, str, list[tuple[str, list[tuple[str, str]]]]]]:
    """Split, what it is, and for each model its cells: number and interval, empty where there is none.

    Of several runs, each with what its models' names end in, the first says which splits, models and metrics there are.
    """
    scores = runs[0][1]
    return [
        (
            _split(split),
            SPLIT_NOTES.get(split, ""),
            [
                (_model(model) + whose, [_cell(run, model, split, metric) for metric in scores.metrics])
                for model in scores.models
                for whose, run in runs
                if model in run.models and split in run.splits
            ],
        )
        for split in scores.splits
    ]


def _name_of(results: Mapping[str, Any]) -> str:
    settings = results.get("settings")
    return visible(settings.get("model", "other model") if isinstance(settings, Mapping) else "other model", 40)


def _cell(scores: Scores, model: str, split: str, metric: str) -> tuple[str, str]:
    score = scores.get(model, split, metric)
    if metric == COUNT and score.value is not None:
        return f"{score.value:,.0f}" if score.value == round(score.value) else f"{score.value:,.1f}", ""
    return str(score), "" if score.interval is None else "\u2013".join(f"{end:.2f}" for end in score.interval)


def _cards(examples: Sequence[Example], images: Path) -> dict[str, list[dict[str, Any]]]:
    cards: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        asked, picture = example.asked, thumbnail(example, images)
        cards.setdefault(asked.split, []).append({"asked": asked, "picture": picture, "answers": example.answers})
    return cards


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as rows: `{"a": {"b": 1}}` becomes `a.b`, 1."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif name:
        plain = isinstance(value, (list, tuple)) and not any(isinstance(part, (list, tuple, Mapping)) for part in value)
        yield name, ", ".join(map(str, value)) if plain and value else value


def _seconds(stages: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = {str(stage).replace("_", " "): s for stage, s in stages.items() if isinstance(s, (int, float))}
    rows = [(stage, f"{seconds:,.1f}") for stage, seconds in known.items()]
    return [*rows, ("total", f"{sum(known.values()):,.1f}")] if rows else []


def _model(model: str) -> str:
    return MODEL_NAMES.get(model, visible(model, 40))


def _split(split: str) -> str:
    return SPLIT_NAMES.get(split, visible(split, 60))
