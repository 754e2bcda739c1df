"""Chart of what protection costs: refused sensitive questions against refused ordinary ones."""

from __future__ import annotations

from typing import Any

from lightning_neuralgate.demo.report.formatting import MODEL_NAMES, percent
from lightning_neuralgate.demo.report.ordinary import OrdinaryQuestions
from lightning_neuralgate.demo.report.scores import Scores
from lightning_neuralgate.demo.report.svg import PLACEHOLDERS, draw_text, new_figure, to_svg

_WIDTH, _SIDE, _LEFT, _TOP, _BOTTOM = 330, 264, 48, 30, 46
"""In points: width of the figure, sides of the square plot, and its margins."""


def frontier_points(scores: Scores, ordinary: OrdinaryQuestions) -> dict[str, tuple[float, float]]:
    """Return the refused share of judged ordinary questions and of the first split's sensitive ones, by model.

    Models without both are left out.
    """
    points = {}
    for model in scores.models if scores.splits else ():
        refused, sensitive = ordinary.refused(model), scores.get(model, scores.splits[0], "rta_sensitive").value
        if refused is not None and sensitive is not None:
            points[model] = (refused, sensitive)
    return points


def frontier_chart(scores: Scores, ordinary: OrdinaryQuestions, title: str) -> str:
    """Scatter plot of `frontier_points`, as SVG. On the diagonal, a model refuses both kinds of questions equally often."""
    height, descriptions = _TOP + _SIDE + _BOTTOM, []
    with new_figure(_WIDTH, height) as figure:
        axes = figure.add_axes((_LEFT / _WIDTH, _BOTTOM / height, _SIDE / _WIDTH, _SIDE / height))
        axes.plot([0, 1], [0, 1], color=PLACEHOLDERS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        draw_text(axes, 0.55, 0.5, "refuses both alike", "muted", size=11, ha="left", va="top")
        draw_text(axes, 0.03, 0.92, "best: upper left", "muted", size=11, ha="left", va="top")
        for model, (x, y) in frontier_points(scores, ordinary).items():
            axes.plot(x, y, **_marker(model), clip_on=False, zorder=3)
            descriptions.append(
                f"{MODEL_NAMES[model]}: refuses {percent(y)} of the sensitive and {percent(x)} of the ordinary questions."
            )
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(), yticks=())
        for tick in (0, 0.25, 0.5, 0.75, 1):
            for line in (axes.axhline, axes.axvline):
                line(tick, color=PLACEHOLDERS["rule"], linewidth=0.8, zorder=0)
            label = f"{100 * tick:g}\u00a0%"
            draw_text(axes, tick, -0.05, label, "muted", size=11, va="center")
            draw_text(axes, -0.03, tick, label, "muted", size=11, ha="right", va="center")
        axes.spines[:].set_visible(False)
        draw_text(axes, 0.5, -0.135, "ordinary questions refused", "ink", size=12, va="center")
        draw_text(axes, 0, 1.07, "sensitive questions refused", "ink", size=12, ha="left", va="center")
        return to_svg(figure, "frontier", title, " ".join(descriptions))


def _marker(model: str) -> dict[str, Any]:
    """Style of a point; the ungated edit's is a ring, which stays visible around another point."""
    colour = PLACEHOLDERS[model]
    if model == "ungated":
        ring = {"markerfacecolor": "none", "markeredgecolor": colour, "markeredgewidth": 2}
        return {"marker": "o", "markersize": 13, **ring}
    return {"marker": "s" if model == "unedited" else "o", "markersize": 8, "color": colour}
