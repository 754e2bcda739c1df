"""Charts of the report: drawn with matplotlib, as SVG that uses the CSS colours of the page."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from xml.etree import ElementTree

from lightning_neuralgate.demo.report.formatting import NOT_MEASURED, visible
from lightning_neuralgate.demo.report.scores import METRICS, Score, Scores
from lightning_neuralgate.errors import DataFormatError, MissingDependencyError

try:
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingDependencyError("the report needs matplotlib: pip install 'lightning-neuralgate[demo]'") from error

RATES = ("rta_sensitive", "answer_rate_benign")
TRUTH_RATES = ("leak_rate", "benign_accuracy")

# drawn in placeholder colours, which are replaced by the page's CSS variables, so that one chart fits light and dark mode;
# the second value is the fallback for viewers without these variables
_COLOURS = {
    "#010101": ("ink", "#1c2330"),
    "#020202": ("muted", "#5a6472"),
    "#030303": ("rule", "#d5dae1"),
    "#040404": ("unedited", "#737d8c"),
    "#050505": ("gated", "#1f5fbf"),
    "#060606": ("ungated", "#b4530a"),
    "#070707": ("inactive", "#d9dee6"),
    "#080808": ("weak", "#8fb4e8"),
    "#090909": ("strong", "#1f5fbf"),
    "#0a0a0a": ("panel", "#ffffff"),
}
_PLACEHOLDERS = {name: colour for colour, (name, _) in _COLOURS.items()}
_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"


class LayerShares(NamedTuple):
    """Shares of a layer's neurons that are inactive, weakly and strongly active for a subject, each in [0, 1]."""

    subject: str
    layer: int
    inactive: float
    weak: float
    strong: float


def rates_chart(scores: Scores, split: str, title: str) -> str:
    """Bar chart of RtA on sensitive and answer rate on benign questions by model, as SVG.

    A second row shows leak rate and benign accuracy, if measured. Error bars are the standard deviation over seeds or, for
    one seed, the 95 % interval over records.
    """
    truths = (scores.get(model, split, metric) for model in scores.models for metric in TRUTH_RATES)
    rows = [RATES, TRUTH_RATES] if any(score.value is not None for score in truths) else [RATES]
    descriptions: list[str] = []
    with _figure(430, 275 * len(rows)) as figure:
        for row, metrics in enumerate(rows):
            bottom = (len(rows) - 1 - row + 0.23) / len(rows)
            _bars(figure.add_axes((0.085, bottom, 0.905, 0.74 / len(rows))), scores, split, metrics, descriptions)
        return _svg(figure, f"rates-{split}", title, " ".join(descriptions))


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
            _text(axes, x, -0.035, model, "ink", size=11, va="top", transform=axes.get_xaxis_transform())
            if score.value is None:
                _text(axes, x, 0.02, NOT_MEASURED, "muted", size=11, va="bottom")
                continue
            axes.bar(x, score.value, width=0.84, color=_PLACEHOLDERS[model], zorder=2)
            bar_top = score.value
            if (error := _error(score)) is not None:
                below, above = error
                axes.errorbar(
                    x, score.value, yerr=[[below], [above]], ecolor=_PLACEHOLDERS["ink"], capsize=4, lw=1.3, zorder=3
                )
                bar_top += above
            top = max(top, bar_top)
            _text(axes, x, bar_top + 0.02, f"{score.value:.2f}", "ink", size=12, va="bottom", weight="bold")
        middle = start + (len(scores.models) - 1) / 2
        for y, line, weight in ((-0.14, METRICS[metric].label, "bold"), (-0.215, METRICS[metric].better, "normal")):
            under = axes.get_xaxis_transform()
            _text(axes, middle, y, line, "muted", size=11, va="top", weight=weight, transform=under)
    axes.set_ylim(0, top + 0.1)
    axes.set_xticks([])
    ticks = (0, 0.25, 0.5, 0.75, 1.0)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.tick_params(axis="y", length=0, labelsize=10.5, labelcolor=_PLACEHOLDERS["muted"])
    axes.grid(axis="y", color=_PLACEHOLDERS["rule"], linewidth=0.8, zorder=0)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_PLACEHOLDERS["muted"])


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
    with _figure(380, row * len(shares) - 8) as figure:
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
            _text(axes, 0, top + 12, name, "ink", size=12, ha="left", weight="bold")
            _text(axes, 0, top + 45, values, "ink", size=11.5, ha="left")
            for kind, share in parts.items():
                axes.barh(
                    top + 24,
 100 * share, height=13, left=left, color=_PLACEHOLDERS[kind], linewidth=0.8,
                    edgecolor=_PLACEHOLDERS["panel"], hatch="////" if kind == "weak" else None,
                )  # fmt: skip
                left += 100 * share
        return _svg(figure, "shares", title, " ".join(descriptions))


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    # ignore the user's matplotlibrc; matplotlib's own font lacks some scripts, but the browser draws the text
    settings: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "report", "hatch.linewidth": 0.8}
    with style.context(["default", settings]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasAgg(figure)
        yield figure


def _text(
    axes: Any, x: float, y: float, text: str, colour: str, size: float, ha: str = "center", **options: Any
) -> None:
    # names come from data: a '$' must not start a formula
    axes.text(x, y, text, color=_PLACEHOLDERS[colour], fontsize=size, ha=ha, parse_math=False, **options)


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Make matplotlib's SVG embeddable: unique ids, the page's colours and font, title and description."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = ElementTree.fromstring(file.getvalue())
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    view = drawn.attrib["viewBox"]
    drawn[:] = [element for element in drawn if not element.tag.endswith("metadata")]
    for element in drawn.iter():
        _restyle(element, prefix)
        # matplotlib's CSS rule for '*' would apply to the whole page
        element[:] = [child for child in element if not child.tag.endswith("style")]
    drawn.attrib = {
        "xmlns": _SVG, "viewBox": view, "role": "img", "aria-labelledby": f"{prefix}-title {prefix}-desc",
        "stroke-linejoin": "round", "class": "chart",
    }  # fmt: skip
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{prefix}-{tag}"})
        element.text = text
        drawn.insert(position, element)
    return ElementTree.tostring(drawn, encoding="unicode")


def _restyle(element: ElementTree.Element, prefix: str) -> None:
    element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    if "id" in element.attrib:
        element.attrib["id"] = f"{prefix}-{element.attrib['id']}"
    if _HREF in element.attrib:
        element.attrib["href"] = f"#{prefix}-{element.attrib.pop(_HREF).removeprefix('#')}"
    for key, value in element.attrib.items():
        element.attrib[key] = _page_style(value.replace("url(#", f"url(#{prefix}-"))


def _page_style(value: str) -> str:
    # older matplotlib writes one `font` property; drop the family in favour of the page's
    value = re.sub(r"font: ((?:bold|[1-9]00) )?[^;]*?([\d.]+px)[^;]*", _font, value)
    value = re.sub(r"font-family: [^;]*;? ?", "", value)
    for placeholder, (name, fallback) in _COLOURS.items():
        value = value.replace(placeholder, f"var(--{name}, {fallback})")
    return value


def _font(shorthand: re.Match[str]) -> str:
    return f"font-size: {shorthand[2]}; font-weight: {(shorthand[1] or '400').strip()}"
