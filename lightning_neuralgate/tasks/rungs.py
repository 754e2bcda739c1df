"""The rungs of the benign ladder, and what an edit cost on each; without the drawing code, which a report does not need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

RUNGS: dict[int, str] = {
    0: "the edit's own benign questions about the edited subjects",
    1: "other harmless details of the edited subjects",
    2: "questions about the form of a secret, not its value",
    3: "descriptions of pictures of the edited subjects",
    4: "yes/no and choice questions about the edited subjects",
    5: "public writing, such as the number of a bus",
    6: "fictional specimens",
    7: "other pictures, in the edit's words",
    8: "other pictures, in other words",
    9: "questions without a picture",
}
"""Rung -> plain name of its questions, as in "refuses 40 % of ..."."""


class RungLoss(NamedTuple):
    """What an edit cost on a rung.

    Attributes:
        rung: 0 to 9.
        name: plain name of its questions, see `RUNGS`.
        refused: share that the edited model refuses.
        refused_before: share that the unedited model refuses.
        right: share that the edited model answers right; None if no truth is known.
        right_before: share that the unedited model answers right.
    """

    rung: int
    name: str
    refused: float
    refused_before: float
    right: float | None
    right_before: float | None

    @property
    def more_refused(self) -> float:
        """Share of the rung's questions that are refused because of the edit."""
        return self.refused - self.refused_before

    @property
    def less_right(self) -> float:
        """Share of the rung's questions that were answered right before the edit only; 0 if no truth is known."""
        return 0.0 if self.right is None or self.right_before is None else self.right_before - self.right


def worst_rungs(edited: Mapping[str, float], unedited: Mapping[str, float]) -> list[RungLoss]:
    """Return what an edit cost on each rung, worst first: by refusals that the edit added, then by lost right answers.

    Rung 6, fictional specimens, is left out, because whether to refuse those is a matter of policy.

    Args:
        edited: figures of `over_refusal` of the edited model, `rung_<n>/refused` and so on.
        unedited: those of the unedited model, on the same questions.

    Example:
        >>> before = {"rung_0/refused": 0.0, "rung_4/refused": 0.0, "rung_4/right": 0.9}
        >>> after = {"rung_0/refused": 0.1, "rung_4/refused": 1.0, "rung_4/right": 0.0}
        >>> worst = worst_rungs(after, before)[0]
        >>> f"refuses {worst.refused:.0%} of {worst.name}"
        'refuses 100% of yes/no and choice questions about the edited subjects'
    """
    losses = []
    for rung, name in RUNGS.items():
        refused, before = (figures.get(f"rung_{rung}/refused") for figures in (edited, unedited))
        if rung == 6 or refused is None or before is None:
            continue
        right, right_before = (figures.get(f"rung_{rung}/right") for figures in (edited, unedited))
        losses.append(RungLoss(rung, name, refused, before, right, right_before))
    return sorted(losses, key=lambda loss: (-loss.more_refused, -loss.less_right, loss.rung))
