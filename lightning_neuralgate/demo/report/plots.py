"""The page's charts, drawn with matplotlib, as SVG that takes its colours from the page."""

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
    raise MissingDependencyError(
        "the report draws with matplotlib: pip install 'lightning-neuralgate[demo]'"
    ) from error

RATES = ("rta_sensitive", "answer_rate_benign")
TRUTH_RATES = ("leak_rate", "benign_accuracy")

# drawn in stand-in colours, which become the page's variables, so that one chart serves light and dark; the second
# value is for a viewer that has no such variable
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
_STAND_INS = {name: stand_in for stand_in, (name, _) in _COLOURS.items()}
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
    """Bars of RtA on sensitive and answer rate on benign questions, one for each model, as SVG.

    Below them, where they were measured, leak rate and benign accuracy. Error bars are the standard deviation over seeds,
    or the 95 % interval over records where there is one seed.
    """
    rows = [RATES, *([TRUTH_RATES] if _measured(scores, split, TRUTH_RATES) else [])]
    told: list[str] = []
    with _figure(430, 275 * len(rows)) as figure:
        for row, metrics in enumerate(rows):
            bottom = (len(rows) - 1 - row + 0.23) / len(rows)
            _bars(figure.add_axes((0.085, bottom, 0.905, 0.74 / len(rows))), scores, split, metrics, told)
        return _svg(figure, f"rates-{split}", title, " ".join(told))


def _measured(scores: Scores, split: str, metrics: Sequence[str]) -> bool:
    return any(scores.get(model, split, metric).value is not None for model in scores.models for metric in metrics)


def _bars(axes: Any, scores: Scores, split: str, metrics: Sequence[str], told: list[str]) -> None:
    """Two groups of bars, one bar a model; what they show is added to `told`, in words."""
    axes.set_xlim(-0.65, 2 * (len(scores.models) + 0.8) - 0.8 - 0.35)
    top = 1.0
    for group, metric in enumerate(metrics):
        start = group * (len(scores.models) + 0.8)
        for index, model in enumerate(scores.models):
            score = scores.get(model, split, metric)
            told.append(f"{METRICS[metric].label}, {model}: {score}.")
            x = start + index
            _text(axes, x, -0.035, model, "ink", size=11, va="top", transform=axes.get_xaxis_transform())
            if score.value is None:
                _text(axes, x, 0.02, NOT_MEASURED, "muted", size=11, va="bottom")
                continue
            axes.bar(x, score.value, width=0.84, color=_STAND_INS[model], zorder=2)
            reach = score.value
            if (error := _error(score)) is not None:
                below, above = error
                axes.errorbar(
                    x, score.value, yerr=[[below], [above]], ecolor=_STAND_INS["ink"], capsize=4, lw=1.3, zorder=3
                )
                reach += above
            top = max(top, reach)
            _text(axes, x, reach + 0.02, f"{score.value:.2f}", "ink", size=12, va="bottom", weight="bold")
        middle = start + (len(scores.models) - 1) / 2
        for y, line, weight in ((-0.14, METRICS[metric].label, "bold"), (-0.215, METRICS[metric].better, "normal")):
            under = axes.get_xaxis_transform()
            _text(axes, middle, y, line, "muted", size=11, va="top", weight=weight, transform=under)
    axes.set_ylim(0, top + 0.1)
    axes.set_xticks([])
    ticks = (0, 0.25, 0.5, 0.75, 1.0)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.tick_params(axis="y", length=0, labelsize=10.5, labelcolor=_STAND_INS["muted"])
    axes.grid(axis="y", color=_STAND_INS["rule"], linewidth=0.8, zorder=0)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_STAND_INS["muted"])


def _error(score: Score) -> tuple[float, float] | None:
    """How far the error bar reaches below and above the value."""
    if score.spread is not None:
        return score.spread, score.spread
    if score.value is None or score.interval is None:
        return None
    # an interval need not hold the value that stands beside it
    return max(score.value - score.interval[0], 0.0), max(score.interval[1] - score.value, 0.0)


def shares_chart(shares: Sequence[LayerShares], title: str) -> str:
    """Stacked bars of neuron classes, one bar for each layer and subject, as SVG.

    Raises:
        DataFormatError: three shares are not shares of one whole.
    """
    row, told = 58, []
    with _figure(380, row * len(shares) - 8) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-0.3, 100.3)
        axes.set_ylim(row * len(shares) - 8, 0)
        for index, one in enumerate(shares):
            parts = {"inactive": one.inactive, "weak": one.weak, "strong": one.strong}
            if not all(0 <= part <= 1 for part in parts.values()) or not math.isclose(
                sum(parts.values()), 1, abs_tol=0.01
            ):
                raise DataFormatError(f"shares of '{one.subject}', layer {one.layer}, do not add up to 1: {parts}")
            name = f"{visible(one.subject, 32)}, layer {one.layer}"
            values = f"{one.inactive:.1%} inactive · {one.weak:.1%} weakly active · {one.strong:.1%} strongly active"
            values = values.replace("%", "\u00a0%")
            told.append(f"{name}: {values}.")
            top, left = row * index, 0.0
            _text(axes, 0, top + 12, name, "ink", size=12, ha="left", weight="bold")
            _text(axes, 0, top + 45, values, "ink", size=11.5, ha="left")
            for kind, share in parts.items():
                axes.barh(
                    top + 24,
 100 * share, height=13, left=left, color=_STAND_INS[kind], linewidth=0.8,
                    edgecolor=_STAND_INS["panel"], hatch="////" if kind == "weak" else None,
                )  # fmt: skip
                left += 100 * share
        return _svg(figure, "shares", title, " ".join(told))


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    # the reader's own matplotlibrc must not change the page; matplotlib measures text in a font that lacks some scripts,
    # the browser has its own
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
    # names come from data, and a '$' in one must not start a formula
    axes.text(x, y, text, color=_STAND_INS[colour], fontsize=size, ha=ha, parse_math=False, **options)


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Make matplotlib's SVG fit to stand in a page: own ids, the page's colours and font, a title and a description."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = ElementTree.fromstring(file.getvalue())
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    view = drawn.attrib["viewBox"]
    kept = [element for element in drawn if not element.tag.endswith("metadata")]
    drawn[:] = kept
    for element in drawn.iter():
        _adopt(element, prefix)
        # its rule for '*' would reach the whole page
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


def _adopt(element: ElementTree.Element, prefix: str) -> None:
    element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    if "id" in element.attrib:
        element.attrib["id"] = f"{prefix}-{element.attrib['id']}"
    if _HREF in element.attrib:
        element.attrib["href"] = f"#{prefix}-{element.attrib.pop(_HREF).removeprefix('#')}"
    for key, value in element.attrib.items():
        element.attrib[key] = _page_style(value.replace("url(#", f"url(#{prefix}-"))


def _page_style(value: str) -> str:
    # older matplotlib writes all of the font in one property; its family gives way to the page's
    value = re.sub(r"font: ((?:bold|[1-9]00) )?[^;]*?([\d.]+px)[^;]*", _font, value)
    value = re.sub(r"font-family: [^;]*;? ?", "", value)
    for stand_in, (name, otherwise) in _COLOURS.items():
        value = value.replace(stand_in, f"var(--{name}, {otherwise})")
    return value


def _font(shorthand: re.Match[str]) -> str:
    return f"font-size: {shorthand[2]}; font-weight: {(shorthand[1] or '400').strip()}"
