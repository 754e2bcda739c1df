from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.locate.layer_search import (
    active_counts,
    check_range,
    draw_search,
    mean_shares,
    propose,
    search_range,
    write_tables,
)

IDENTITY = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 8, 4)


def gate(strong: dict[int, tuple[int, int]]) -> NeuralGate:
    """Gate of two subjects with four neurons; `strong` maps each layer to their numbers of strongly active neurons."""
    rates = {
        subject: {
            layer: torch.tensor([1.0] * counts[index] + [0.25] * (4 - counts[index]))
            for layer, counts in strong.items()
        }
        for index, subject in enumerate(("passport", "receipt"))
    }
    return NeuralGate(rates, IDENTITY, {"passport": 4, "receipt": 4})


def test_the_centre_is_where_most_neurons_are_strongly_active() -> None:
    found = gate({1: (1, 0), 2: (2, 3), 3: (4, 0), 5: (1, 1)})
    assert mean_shares(found, 2, 0.3) == pytest.approx((0.0, 3 / 8, 5 / 8))
    proposal = propose(found, 0.3, radius=2)
    assert proposal.centre == 2
    assert proposal.candidates == (1, 2, 3)
    assert propose(found, 0.3, radius=0).candidates == (2,)
    assert propose(found, 0.2).centre == 1, "where all are active, the lowest of equals"
    with pytest.raises(ValueError, match="radius"):
        propose(found, 0.3, -1)


def test_the_papers_range_in_other_depths() -> None:
    assert search_range(32) == list(range(3, 20))
    assert search_range(40)[0] == 4
    assert search_range(40)[-1] == 24
    for count in range(1, 80):
        check_range(search_range(count), count)
    with pytest.raises(ModelLayoutError, match=r"\[9\]: the model has layers 0 to 7"):
        check_range([1, 9], 8)
    with pytest.raises(ModelLayoutError, match="layers 0 to 7"):
        check_range([], 8)


def test_tables_hold_what_the_figures_show(tmp_path: Path) -> None:
    found = gate({1: (1, 0), 2: (2, 3)})
    write_tables(found, 0.3, tmp_path)
    with (tmp_path / "shares.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["layer"], row["subject"]) for row in rows] == [
        ("1", "passport"), ("1", "receipt"), ("2", "passport"), ("2", "receipt"),
    ]  # fmt: skip
    for row in rows:
        shares = found.shares(row["subject"], int(row["layer"]), 0.3)
        assert tuple(float(row[name]) for name in ("inactive", "weak", "strong")) == pytest.approx(shares)
    assert active_counts(found, 2) == {0.25: 3, 1.0: 5}
    with (tmp_path / "activity.csv").open() as lines:
        assert [tuple(row) for row in csv.reader(lines)][1:] == [
            ("1", "0.25", "7"), ("1", "1.0", "1"), ("2", "0.25", "3"), ("2", "1.0", "5"),
        ]  # fmt: skip


def test_a_subject_that_a_spreadsheet_would_compute_is_quoted(tmp_path: Path) -> None:
    write_tables(NeuralGate({"=1+1": {1: torch.ones(4)}}, IDENTITY, {"=1+1": 2}), 0.3, tmp_path)
    with (tmp_path / "shares.csv").open() as lines:
        assert [row["subject"] for row in csv.DictReader(lines)] == ["'=1+1"]


def test_the_figure_shows_the_shares() -> None:
    found = gate({1: (1, 0), 2: (2, 3), 3: (4, 0)})
    counts, strong = draw_search(found, 0.3, propose(found, 0.3, 1)).axes
    assert [bar.get_height() for bar in strong.patches] == [12.5, 62.5, 50.0]
    assert list(counts.lines[1].get_xdata()) == [25.0, 100.0]
    assert list(counts.lines[1].get_ydata()) == [37.5, 62.5]


def test_the_figure_of_a_gate_in_which_nothing_is_active() -> None:
    found = NeuralGate({"passport": {1: torch.zeros(4)}}, IDENTITY, {"passport": 2})
    draw_search(found, 0.3, propose(found, 0.3)).canvas.draw()
