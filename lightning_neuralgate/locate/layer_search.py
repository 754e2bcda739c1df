"""Search for the layer to edit, as in the paper.

Locate in every layer of a range, each separately. The layer with the largest share of strongly active neurons is the centre
o; the layers from o - r to o + r are the candidates for single-layer edits.
"""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_neuralgate.errors import MissingDependencyError, ModelLayoutError
from lightning_neuralgate.gate.neural_gate import ClassShares, NeuralGate
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.text import csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIRST, _LAST, _DEPTH = 3, 19, 32
"""The paper searches layers 3 to 19 of 32."""


def search_range(num_layers: int) -> list[int]:
    """Scale the paper's search range to the depth of a model.

    Example:
        >>> search_range(32) == list(range(3, 20))
        True
        >>> search_range(30)[0], search_range(30)[-1]
        (3, 18)
    """
    first, last = (round(bound * num_layers / _DEPTH) for bound in (_FIRST, _LAST))
    return list(range(first, max(first, min(last, num_layers - 1)) + 1))


@dataclass(frozen=True)
class LayerProposal:
    """The proposed layers.

    Attributes:
        centre: the layer with the largest share of strongly active neurons, averaged over subjects; the lowest of equals.
        candidates: the searched layers from `centre - radius` to `centre + radius`.
    """

    centre: int
    candidates: tuple[int, ...]


def propose(gate: NeuralGate, tau: float, radius: int = 2) -> LayerProposal:
    """Find the centre and the candidates among the layers of a gate.

    Args:
        gate: a gate that covers the searched layers.
        tau: threshold of the activity rate.
        radius: distance of the candidates from the centre, in layers.

    Raises:
        ValueError: the radius is negative.
    """
    if radius < 0:
        raise ValueError(f"radius must not be negative, got {radius}")
    strong = {layer: mean_shares(gate, layer, tau).strong for layer in gate.layers}
    centre = max(strong, key=lambda layer: (strong[layer], -layer))
    return LayerProposal(centre, tuple(layer for layer in gate.layers if abs(layer - centre) <= radius))


def mean_shares(gate: NeuralGate, layer: int, tau: float) -> ClassShares:
    """Average the shares of inactive, weakly and strongly active neurons of a layer over subjects."""
    shares = [gate.shares(subject, layer, tau) for subject in gate.subjects]
    return ClassShares(*(statistics.fmean(parts) for parts in zip(*shares, strict=True)))


def active_counts(gate: NeuralGate, layer: int) -> dict[float, int]:
    """Count the neurons at each activity rate, summed over subjects (figure 2c): activity rate -> number of neurons.

    Example:
        >>> import torch
        >>> from lightning_neuralgate.hf.identity import ModelIdentity
        >>> identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
        >>> gate = NeuralGate({"passport": {1: torch.tensor([0.0, 0.5, 0.5, 1.0])}}, identity, {"passport": 2})
        >>> active_counts(gate, 1)
        {0.0: 1, 0.5: 2, 1.0: 1}
    """
    counts: Counter[float] = Counter()
    for subject in gate.subjects:
        counts.update(round(float(rate), 6) for rate in gate.rates(subject, layer))
    return dict(sorted(counts.items()))


def check_range(layers: Sequence[int], num_layers: int) -> None:
    """Check that a model has some layers.

    Raises:
        ModelLayoutError: a layer does not exist, or there are none.
    """
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong or not layers:
        raise ModelLayoutError(
            f"cannot search layers {wrong or list(layers)}: the model has layers 0 to {num_layers - 1}"
        )


def write_tables(gate: NeuralGate, tau: float, folder: Path) -> None:
    """Write `shares.csv` (one row per layer and subject) and `activity.csv` (layer, share of records, neurons)."""
    with atomic_write(folder / "shares.csv") as draft, draft.open("w", newline="", encoding="utf-8") as lines:
        rows = csv.writer(lines)
        rows.writerow(["layer", "subject", "records", "inactive", "weak", "strong"])
        for layer in gate.layers:
            for subject in gate.subjects:
                shares = gate.shares(subject, layer, tau)
                rows.writerow([layer, csv_text(subject), gate.records[subject], *(f"{share:.6f}" for share in shares)])
    with atomic_write(folder / "activity.csv") as draft, draft.open("w", newline="", encoding="utf-8") as lines:
        rows = csv.writer(lines)
        rows.writerow(["layer", "share_of_records", "neurons"])
        for layer in gate.layers:
            rows.writerows([layer, share, neurons] for share, neurons in active_counts(gate, layer).items())


def draw_search(gate: NeuralGate, tau: float, proposal: LayerProposal) -> Figure:
    """Draw the paper's figures 2c and 2d for a gate.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("the figure needs matplotlib: pip install 'lightning-neuralgate[demo]'") from error
    layers = gate.layers
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    shades = colormaps["viridis"].resampled(max(len(layers), 2))
    for number, layer in enumerate(layers):
        counts = active_counts(gate, layer)
        total = sum(counts.values())
        shares = [share for share in counts if share > 0]
        left.plot(
            [100 * share for share in shares],
            [100 * counts[share] / total for share in shares],
            marker="o", markersize=3, linewidth=1.2, color=shades(number), label=f"layer {layer}",
        )  # fmt: skip
    left.axvline(100 * tau, color="0.35", linewidth=1, linestyle=(0, (4, 3)))
    left.set(xlabel="active in this share of the records (%)", ylabel="neurons (%)", xlim=(0, 103))
    if any(share > 0 for layer in layers for share in active_counts(gate, layer)):
        left.set_yscale("log")
    left.legend(fontsize=7, ncols=2, frameon=False)
    strong = [100 * mean_shares(gate, layer, tau).strong for layer in layers]
    colours = ["C0" if layer in proposal.candidates else "0.75" for layer in layers]
    right.bar(layers, strong, color=colours, width=0.75)
    for subject in gate.subjects:
        points = [100 * gate.shares(subject, layer, tau).strong for layer in layers]
        right.plot(layers, points, "o", color="0.2", markersize=2.5, alpha=0.6)
    right.set_xticks(layers)
    right.set(xlabel="layer", ylabel=f"strongly active neurons (%), tau {tau:g}")
    right.set_title(f"centre: layer {proposal.centre}; blue: candidates; dots: subjects", fontsize=9, loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
