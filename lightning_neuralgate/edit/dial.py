"""The dial of an edit: the least share c of W0 + c (W - W0) at which the model still keeps its secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_neuralgate.runtime.files import atomic_write

DIAL_NAME = "dial.json"
DIAL_SCALES = tuple(step / 10 for step in range(11))
"""Shares of the edit that are measured; 0 is the unedited model."""


@dataclass(frozen=True)
class DialPoint:
    """Rates at one share of the edit: secrets that come out, sensitive queries refused, benign ones answered."""

    scale: float
    leak_rate: float
    rta_sensitive: float
    answer_rate_benign: float


@dataclass(frozen=True)
class Dial:
    """Rates at several shares of an edit, and the chosen share.

    Attributes:
        max_leak: largest leak rate that is accepted.
        frontier: the measured points.

    Example:
        >>> points = [DialPoint(scale, 1 - scale, scale, 1.0) for scale in (0.0, 0.5, 0.9, 1.0)]
        >>> Dial(0.2, points).scale, Dial(0.2, points[:2]).reached
        (0.9, False)
    """

    max_leak: float
    frontier: Sequence[DialPoint]

    @property
    def scale(self) -> float:
        """The least measured share above 0 with at most `max_leak`; 1 where there is none."""
        return min((point.scale for point in self._accepted()), default=1.0)

    @property
    def reached(self) -> bool:
        """Whether any share keeps to `max_leak`."""
        return any(True for _ in self._accepted())

    def _accepted(self) -> Iterator[DialPoint]:
        # at 0 there is no edit, whatever the model leaks
        return (point for point in self.frontier if point.scale > 0 and point.leak_rate <= self.max_leak)

    def described(self) -> Iterator[str]:
        """Yield a table of the frontier and the choice, line by line."""
        yield "share of the edit   leak   refused   benign answered"
        for p in self.frontier:
            chosen = "  <-" if self.reached and p.scale == self.scale else ""
            yield f"{p.scale:17.1f}{p.leak_rate:7.2f}{p.rta_sensitive:10.2f}{p.answer_rate_benign:18.2f}{chosen}"
        if not self.reached:
            yield f"no share of the edit leaks at most {self.max_leak:g} on the validation records; the full edit is kept"

    def save(self, file: Path) -> None:
        """Write the choice and the frontier as JSON."""
        frontier = [asdict(point) for point in self.frontier]
        content = {"scale": self.scale, "reached": self.reached, "max_leak": self.max_leak, "frontier": frontier}
        with atomic_write(file) as draft:
            draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
