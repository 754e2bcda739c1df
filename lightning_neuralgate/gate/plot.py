"""Plot of a gate: the sorted activity rates of each layer, one curve per subject."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_neuralgate.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 12
"""As many panels as stay legible on a screen."""
MAX_COLOURS = 10
"""Size of matplotlib's colour cycle; further curves are grey."""
_MAX_NAME = 22


def draw_gate(
    rates: Mapping[int, Mapping[str, Tensor]], tau: float | None, title: str, max_layers: int = MAX_PANELS
) -> tuple[Figure, list[Axes]]:
    """Draw one panel per layer; in it, for each subject, the share of neurons (x) whose activity rate is at least y.

    A curve crosses the line of tau at the share of unmasked neurons, which the legend shows; without a tau it shows the mean
    rate. Subjects beyond `MAX_COLOURS` are thin and grey.

    Args:
        rates: layer -> subject -> activity rates, shape (d,), in [0, 1].
        tau: the rate above which a neuron is unmasked; None for a soft gate.
        title: title of the figure.
        max_layers: maximum number of panels; of more layers, evenly spaced ones are drawn.

    Returns:
        The figure, which is not registered with pyplot, and the axes of the drawn layers in the same order.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "a gate's plot needs matplotlib: pip install 'lightning-neuralgate[demo]'"
        ) from error
    drawn = _evenly_spaced(list(rates), max_layers)
    columns = len(drawn) if len(drawn) <= 3 else min(math.ceil(math.sqrt(len(drawn))), 4)
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(max(3.6 * columns, 5.2) + 0.4, 3.1 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    axes = [next(grid) for _ in drawn]
    for unused in grid:
        unused.remove()
    for number, (layer, panel) in enumerate(zip(drawn, axes, strict=True)):
        _draw_layer(panel, rates[layer], tau)
        _style(panel)
        panel.set_title(f"layer {layer}", fontsize=10, loc="left", fontweight="bold")
        # the last panel of a column need not be in the last row
        panel.tick_params(labelbottom=number + columns >= len(drawn))
    selection = f" · {len(drawn)} of {len(rates)} layers" if len(drawn) < len(rates) else ""
    figure.suptitle(f"{title}{selection}", fontsize=11, parse_math=False)
    figure.supxlabel("neurons, most active first (%)", fontsize=10)
    figure.supylabel("activity rate (share of records)", fontsize=10)
    return figure, axes


def _draw_layer(axes: Axes, rates: Mapping[str, Tensor], tau: float | None) -> None:
    coloured, others = list(rates.items())[:MAX_COLOURS], list(rates.values())[MAX_COLOURS:]
    lines, labels = [], []
    for number, (subject, values) in enumerate(coloured):
        share = _share(values, tau)
        lines += axes.plot(*_steps(values), color=f"C{number}", linewidth=1.6)
        labels.append(f"{_percent(share)}  {_shortened(subject)}")
        if tau is not None:
            axes.plot(100 * share, tau, "o", color=f"C{number}", markersize=4, zorder=4, clip_on=False)
    for values in others:
        lines[MAX_COLOURS:] = axes.plot(*_steps(values), color="0.75", linewidth=0.6, zorder=1)
    if others:
        shares = [_share(values, tau) for values in others]
        labels.append(f"{_percent(min(shares))} to {_percent(max(shares)).strip()}  {len(others)} others")
    if tau is not None:
        axes.axhline(tau, color="0.35", linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    # the curves decrease, so this corner is the emptiest
    legend = axes.legend(
        lines, labels, loc="upper right", fontsize=7 if len(lines) > 5 else 8, title_fontsize=8, framealpha=0.85,
        edgecolor="none", handlelength=1.2, labelspacing=0.25, borderaxespad=0.1, borderpad=0.3, alignment="left",
        title="mean rate" if tau is None else f"unmasked: rate > τ = {tau:g}",
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)  # a '$' in a subject's name must not start a formula


def _style(axes: Axes) -> None:
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, length=2)


def _share(values: Tensor, tau: float | None) -> float:
    """Return the share of neurons above tau; without a tau, their mean rate."""
    return float(values.mean() if tau is None else (values > tau).double().mean())


def _steps(values: Tensor) -> tuple[Any, Any]:
    """Return the corners of the sorted values' step function: share of neurons in percent, and value.

    >>> _steps(torch.tensor([0.5, 1.0, 0.5, 0.0]))[0].tolist()
    [0.0, 25.0, 25.0, 75.0, 75.0, 100.0]
    """
    # the rates of n records have n + 1 possible values, so there are few steps, however wide the model is
    steps, widths = values.sort(descending=True).values.unique_consecutive(return_counts=True)
    right = 100 * widths.cumsum(0) / len(values)
    left = torch.cat([right.new_zeros(1), right[:-1]])
    return torch.stack([left, right], 1).flatten().numpy(), steps.repeat_interleave(2).numpy()


_FIGURE_SPACE = "\u2007"
"""As wide as a digit, so that the shares in a legend are aligned."""


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %").rjust(5, _FIGURE_SPACE)


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _evenly_spaced(layers: list[int], count: int) -> list[int]:
    """Return at most `count` of the layers, including the first and the last.

    >>> _evenly_spaced([0, 1, 2, 3, 4, 5, 6], 3)
    [0, 3, 6]
    >>> _evenly_spaced([4, 5], 3)
    [4, 5]
    """
    if len(layers) <= count:
        return layers
    return [layers[round(index * (len(layers) - 1) / max(count - 1, 1))] for index in range(count)]
