"""Drawing of the report's charts: matplotlib figures as SVG that uses the CSS colours of the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from lightning_neuralgate.errors import MissingDependencyError

try:
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
except ImportError as error:
    raise MissingDependencyError("the report needs matplotlib: pip install 'lightning-neuralgate[demo]'") from error

__all__ = ["PLACEHOLDERS", "Path", "PathPatch", "draw_text", "new_figure", "to_svg"]

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
PLACEHOLDERS = {name: colour for colour, (name, _) in _COLOURS.items()}
"""CSS variable of the page -> colour to draw with."""
_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of a size in points, one of which becomes one unit of the SVG."""
    # ignore the user's matplotlibrc; matplotlib's own font lacks some scripts, but the browser draws the text
    settings: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "report", "hatch.linewidth": 0.8}
    with style.context(["default", settings]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasAgg(figure)
        yield figure


def draw_text(
    axes: Any, x: float, y: float, text: str, colour: str, size: float, ha: str = "center", **options: Any
) -> None:
    """Draw a text in a colour of `PLACEHOLDERS`, as it is."""
    # names come from data: a '$' must not start a formula
    axes.text(x, y, text, color=PLACEHOLDERS[colour], fontsize=size, ha=ha, parse_math=False, **options)


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
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
