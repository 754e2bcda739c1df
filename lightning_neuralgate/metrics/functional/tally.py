"""What each item of a benchmark adds to its figures, with the items kept apart so that they can be drawn again.

A benchmark's figures are functions of sums over its items: accuracy of the number of right answers, F1 of four counts.
Whoever keeps the items' rows and the function can compute the figures of all items, of a part of them, and of thousands
of bootstrap samples at once (`intervals.score_intervals`, `paired.paired_differences`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_neuralgate.errors import DataFormatError

YesNo = Literal["yes", "no"]


def yes_no_truths(truths: Sequence[str], name: str) -> list[bool]:
    """Whether the true answer of each question is yes; case and surrounding whitespace do not matter.

    The official tools count any other word as yes (POPE) or stop without a word (MME).

    Args:
        truths: n words.
        name: what to call them in an error.

    Raises:
        DataFormatError: one that is neither yes nor no.

    Example:
        >>> yes_no_truths(["yes", "No"], "labels")
        [True, False]
    """
    told = []
    for place, truth in enumerate(truths):
        word = truth.strip().lower() if isinstance(truth, str) else truth
        if word not in ("yes", "no"):
            raise DataFormatError(f"`{name}` value {place} is {truth!r}; expected 'yes' or 'no'")
        told.append(word == "yes")
    return told


Figures = Callable[[NDArray[np.float64]], dict[str, NDArray[np.float64]]]
"""Sums of shape (..., strata, columns) -> name -> figures of shape (...)."""


@dataclass(frozen=True)
class Tally:
    """Rows of one run on one benchmark.

    Attributes:
        names: what a unit is called, n of them: an item's place, or for MME `subtask/image`. Two runs can be compared
            where these are equal.
        rows: what each unit adds to the sums, float64 of shape (n, columns).
        strata: the stratum (subtask, dimension) of each unit, integers in [0, strata_count), shape (n,).
        strata_count: number of strata; their sums are kept apart, and units are drawn again within their own.
        figures: what the figures are, given the sums.
        flags: figure -> the columns that add up, in each unit, to 0 or 1, where the figure is the share of units with 1.

    Example:
        >>> rows = np.array([[1.0, 1.0], [0.0, 1.0]])  # right, asked
        >>> tally = Tally(("0", "1"), rows, np.zeros(2, dtype=np.intp), 1,
        ...               lambda sums: {"accuracy": share(sums[..., 0, 0], sums[..., 0, 1])})
        >>> {name: float(value) for name, value in tally.compute().items()}
        {'accuracy': 0.5}
    """

    names: tuple[str, ...]
    rows: NDArray[np.float64]
    strata: NDArray[np.intp]
    strata_count: int
    figures: Figures
    flags: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def sums(self) -> NDArray[np.float64]:
        """The rows' sums, shape (strata, columns)."""
        return summed_by_stratum(self.rows, self.strata, self.strata_count)

    def compute(self) -> dict[str, NDArray[np.float64]]:
        """The figures of all units, each of shape ()."""
        return self.figures(self.sums())


def summed_by_stratum(rows: NDArray[np.float64], strata: NDArray[np.intp], strata_count: int) -> NDArray[np.float64]:
    """The sums of the rows of each stratum, shape (strata, columns)."""
    sums = np.zeros((strata_count, rows.shape[1]))
    np.add.at(sums, strata, rows)
    return sums


def unstratified(rows: NDArray[np.float64], figures: Figures, flags: Mapping[str, tuple[int, ...]]) -> Tally:
    """A tally of items that are drawn from one pot and called by their places."""
    return Tally(tuple(map(str, range(len(rows)))), rows, np.zeros(len(rows), dtype=np.intp), 1, figures, flags)


def share(
    count: NDArray[np.float64], total: NDArray[np.float64], empty: float | NDArray[np.float64] = np.nan
) -> NDArray[np.float64]:
    """`count / total`, and `empty` where the total is zero: over no items nothing was measured, which is not zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total == 0, empty, np.asarray(count, dtype=np.float64) / total)


def check_lengths(**columns: Sequence[object]) -> int:
    """The number of items, which all columns have to have.

    Raises:
        DataFormatError: columns of different lengths.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} in `{name}`" for name, length in lengths.items())
        raise DataFormatError(f"there have to be as many values in each, found {told}")
    return next(iter(lengths.values()))
