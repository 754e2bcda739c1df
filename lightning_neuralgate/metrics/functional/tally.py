"""Per-item contributions to a benchmark's figures.

A benchmark's figures are functions of sums over its items: accuracy of the number of right answers, F1 of four counts. From
the items' rows and that function, the figures of all items, of a subset, and of thousands of bootstrap samples at once can
be computed (`evaluation.statistics.score_intervals` and `paired_differences`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_neuralgate.errors import DataFormatError

YesNo = Literal["yes", "no"]
Figures = Callable[[NDArray[np.float64]], dict[str, NDArray[np.float64]]]
"""Function from sums of shape (..., strata, columns) to figures of shape (...) by name."""


@dataclass(frozen=True)
class Tally:
    """Rows of one run on one benchmark.

    Attributes:
        names: n unit names: the item's index, or for MME `subtask/image`. Two runs are comparable if their names are equal.
        rows: contribution of each unit to the sums, float64 of shape (n, columns).
        strata: stratum (subtask, dimension) of each unit, integers in [0, strata_count), shape (n,).
        strata_count: number of strata. Sums are kept per stratum, and the bootstrap resamples within each.
        figures: function from the sums to the figures.
        flags: for each figure that is a share of units, the columns whose sum in a unit's row is 1 if the unit counts and
            0 if not.

    Example:
        >>> rows = np.array([[1.0, 1.0], [0.0, 1.0]])  # right answers, questions
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
        """Return the sums of the rows, shape (strata, columns)."""
        return summed_by_stratum(self.rows, self.strata, self.strata_count)

    def compute(self) -> dict[str, NDArray[np.float64]]:
        """Return the figures over all units, each of shape ()."""
        return self.figures(self.sums())


def unstratified(rows: NDArray[np.float64], figures: Figures, flags: Mapping[str, tuple[int, ...]]) -> Tally:
    """Return a tally with a single stratum and the row indices as names."""
    return Tally(tuple(map(str, range(len(rows)))), rows, np.zeros(len(rows), dtype=np.intp), 1, figures, flags)


def summed_by_stratum(rows: NDArray[np.float64], strata: NDArray[np.intp], strata_count: int) -> NDArray[np.float64]:
    """Return the sums of the rows per stratum, shape (strata, columns)."""
    sums = np.zeros((strata_count, rows.shape[1]))
    np.add.at(sums, strata, rows)
    return sums


def share(
    count: NDArray[np.float64], total: NDArray[np.float64], empty: float | NDArray[np.float64] = np.nan
) -> NDArray[np.float64]:
    """Return `count / total`, and `empty` where the total is zero: without items nothing was measured, which is not 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total == 0, empty, np.asarray(count, dtype=np.float64) / total)


def answer_shares(
    right: NDArray[np.float64],
    refused: NDArray[np.float64],
    unparsed: NDArray[np.float64],
    aware: NDArray[np.float64],
    n: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Return the shares that all benchmarks of right and wrong answers have, of n answers each."""
    counts = {"accuracy": right, "refused": refused, "unparsed": unparsed, "refusal_aware_accuracy": aware}
    return {name: share(count, n) for name, count in counts.items()}


def check_lengths(**columns: Sequence[object]) -> int:
    """Return the number of items, the common length of all columns.

    Raises:
        DataFormatError: the lengths differ.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{length} in `{name}`" for name, length in lengths.items())
        raise DataFormatError(f"all columns need the same number of values, found {found}")
    return next(iter(lengths.values()))


def yes_no_truths(truths: Sequence[str], name: str) -> list[bool]:
    """Return whether each correct answer is yes, ignoring case and surrounding whitespace.

    The official tools count any other word as yes (POPE) or stop without a message (MME).

    Args:
        truths: n words.
        name: name of the argument, for the error message.

    Raises:
        DataFormatError: a word is neither yes nor no.

    Example:
        >>> yes_no_truths(["yes", "No"], "labels")
        [True, False]
    """
    flags = []
    for index, truth in enumerate(truths):
        word = truth.strip().lower() if isinstance(truth, str) else truth
        if word not in ("yes", "no"):
            raise DataFormatError(f"`{name}` value {index} is {truth!r}; expected 'yes' or 'no'")
        flags.append(word == "yes")
    return flags
