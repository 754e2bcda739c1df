"""Charts of the report on the edit's own questions, and on the gate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning_neuralgate.demo.report.formatting import NOT_MEASURED, join_words, visible
from lightning_neuralgate.demo.report.scores import METRICS, Score, Scores
from lightning_neuralgate.demo.report.svg import PLACEHOLDERS, Path, PathPatch, draw_text, new_figure, to_svg
from lightning_neuralgate.errors import DataFormatError

RATES = ("rta_sensitive", "answer_rate_benign")
TRUTH_RATES = ("leak_rate", "benign_accuracy")
CLASSES = ("inactive", "weak", "strong")


class LayerShares(NamedTuple):
    """Shares of a layer's neurons that are inactive, weakly and strongly active for a subject, each in [0, 1].

    `classes` are the classes of all neurons, as places in `CLASSES`; empty if they are not to be drawn.
    """

    subject: str
    layer: int
    inactive: float
    weak: float
    strong: float
    classes: Sequence[int] = ()


def rates_chart(scores: Scores, split: str, title: str) -> str:
    """Bar chart of RtA on sensitive and answer rate on benign questions by model, as SVG.

    A second row shows leak rate and benign accuracy, if measured. Error bars are the standard deviation over seeds or, for
    one seed, the 95 % interval over records.
    """
    truths = (scores.get(model, split, metric) for model in scores.models for metric in TRUTH_RATES)
    rows = [RATES, TRUTH_RATES] if any(score.value is not None for score in truths) else [RATES]
    descriptions: list[str] = []
    with new_figure(350, 265 * len(rows)) as figure:
        for row, metrics in enumerate(rows):
            bottom = (len(rows) - 1 - row + 0.23) / len(rows)
            _bars(figure.add_axes((0.095, bottom, 0.895, 0.74 / len(rows))), scores, split, metrics, descriptions)
        return to_svg(figure, f"rates-{split}", title, " ".join(descriptions))


def _bars(axes: Any, scores: Scores, split: str, metrics: Sequence[str], descriptions: list[str]) -> None:
    """Draw a group of bars per metric, one bar per model, and append their values to `descriptions` as text."""
    axes.set_xlim(-0.65, 2 * (len(scores.models) + 0.8) - 0.8 - 0.35)
    top = 1.0
    for group, metric in enumerate(metrics):
        start = group * (len(scores.models) + 0.8)
        for index, model in enumerate(scores.models):
            score = scores.get(model, split, metric)
            descriptions.append(f"{METRICS[metric].label}, {model}: {score}.")
            x = start + index
            draw_text(axes, x, -0.035, model, "ink", size=11, va="top", transform=axes.get_xaxis_transform())
            if score.value is None:
                draw_text(axes, x, 0.02, NOT_MEASURED, "muted", size=11, va="bottom")
                continue
            axes.bar(x, score.value, width=0.84, color=PLACEHOLDERS[model], zorder=2)
            bar_top = score.value
            if (error := _error(score)) is not None:
                below, above = error
                axes.errorbar(
                    x, score.value, yerr=[[below], [above]], ecolor=PLACEHOLDERS["ink"], capsize=4, lw=1.3, zorder=3
                )
                bar_top += above
            top = max(top, bar_top)
            draw_text(axes, x, bar_top + 0.02, f"{score.value:.2f}", "ink", size=12, va="bottom", weight="bold")
        middle = start + (len(scores.models) - 1) / 2
        for y, line, weight in ((-0.14, METRICS[metric].label, "bold"), (-0.215, METRICS[metric].better, "normal")):
            under = axes.get_xaxis_transform()
            draw_text(axes, middle, y, line, "muted", size=11, va="top", weight=weight, transform=under)
    axes.set_ylim(0, top + 0.1)
    axes.set_xticks([])
    ticks = (0, 0.25, 0.5, 0.75, 1.0)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.tick_params(axis="y", length=0, labelsize=10.5, labelcolor=PLACEHOLDERS["muted"])
    axes.grid(axis="y", color=PLACEHOLDERS["rule"], linewidth=0.8, zorder=0)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PLACEHOLDERS["muted"])


def _error(score: Score) -> tuple[float, float] | None:
    """Lengths of the error bar below and above the value."""
    if score.spread is not None:
        return score.spread, score.spread
    if score.value is None or score.interval is None:
        return None
    # a bootstrap interval need not contain the value
    return max(score.value - score.interval[0], 0.0), max(score.interval[1] - score.value, 0.0)


def shares_chart(shares: Sequence[LayerShares], title: str) -> str:
    """Stacked bar chart of neuron classes, one bar per layer and subject, as SVG.

    Raises:
        DataFormatError: the three shares of a bar do not add up to 1.
    """
    row, descriptions = 58, []
    with new_figure(380, row * len(shares) - 8) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-0.3, 100.3)
        axes.set_ylim(row * len(shares) - 8, 0)
        for index, layer in enumerate(shares):
            parts = {"inactive": layer.inactive, "weak": layer.weak, "strong": layer.strong}
            if not all(0 <= part <= 1 for part in parts.values()) or not math.isclose(
                sum(parts.values()), 1, abs_tol=0.01
            ):
                raise DataFormatError(f"shares of '{layer.subject}', layer {layer.layer}, do not add up to 1: {parts}")
            name = f"{visible(layer.subject, 32)}, layer {layer.layer}"
            values = (
                f"{layer.inactive:.1%} inactive · {layer.weak:.1%} weakly active · {layer.strong:.1%} strongly active"
            )
            values = values.replace("%", "\u00a0%")
            descriptions.append(f"{name}: {values}.")
            top, left = row * index, 0.0
            draw_text(axes, 0, top + 12, name, "ink", size=12, ha="left", weight="bold")
            draw_text(axes, 0, top + 45, values, "ink", size=11.5, ha="left")
            for kind, share in parts.items():
                axes.barh(
                    top + 24, 100 * share, height=13, left=left, color=PLACEHOLDERS[kind], linewidth=0.8,
                    edgecolor=PLACEHOLDERS["panel"], hatch="////" if kind == "weak" else None,
                )  # fmt: skip
                left += 100 * share
        return to_svg(figure, "shares", title, " ".join(descriptions))


def gate_chart(shares: Sequence[LayerShares], title: str) -> str:
    """Strip of all neurons for each layer and subject, coloured by class, as SVG.

    All strips of a layer have the same order of neurons: those that are active for the most subjects first. A column that is
    dark in every strip is a neuron that all subjects share.

    Raises:
        DataFormatError: the subjects of a layer have different numbers of neurons, or there is no such class.
    """
    drawn = [layer for layer in shares if len(layer.classes)]
    row = 44
    with new_figure(330, row * len(drawn)) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(row * len(drawn), 0)
        for index, layer in enumerate(drawn):
            name = f"{visible(layer.subject, 32)}, layer {layer.layer}"
            draw_text(axes, 0, row * index + 12, name, "ink", size=12, ha="left", weight="bold")
            order = _shared_first([other for other in drawn if other.layer == layer.layer])
            _strip(axes, [layer.classes[neuron] for neuron in order], row * index + 19)
        subjects = join_words([f"{visible(layer.subject, 32)}, layer {layer.layer}" for layer in drawn])
        return to_svg(figure, "gate", title, f"A strip of coloured neurons for each of {subjects}.")


def _shared_first(layers: Sequence[LayerShares]) -> list[int]:
    """Return the neurons of a layer, those that are active for the most subjects first."""
    widths = {len(layer.classes) for layer in layers}
    if len(widths) > 1 or not all(0 <= kind < len(CLASSES) for layer in layers for kind in layer.classes):
        raise DataFormatError(f"classes of layer {layers[0].layer}: expected 0 to 2, and as many for each subject")
    activity = [sum(kinds) for kinds in zip(*(layer.classes for layer in layers), strict=True)]
    return sorted(range(len(activity)), key=lambda neuron: -activity[neuron])


def _strip(axes: Any, kinds: Sequence[int], top: float) -> None:
    """Draw neurons from left to right; neighbours of one class are one rectangle, and a class is one path."""
    runs: dict[str, list[Path]] = {name: [] for name in CLASSES}
    start = 0
    for kind, neighbours in itertools.groupby(kinds):
        end = start + sum(1 for _ in neighbours)
        left, right = start / len(kinds), end / len(kinds)
        corners = [(left, top), (right, top), (right, top + 16), (left, top + 16)]
        runs[CLASSES[kind]].append(Path([*corners, corners[0]], closed=True))
        start = end
    for name, rectangles in runs.items():
        if rectangles:
            shape = Path.make_compound_path(*rectangles)
            axes.add_patch(PathPatch(shape, facecolor=PLACEHOLDERS[name], linewidth=0, antialiased=False))
