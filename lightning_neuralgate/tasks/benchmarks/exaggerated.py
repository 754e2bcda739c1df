"""What benchmarks of exaggerated safety share: the tally of refusals by type of prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.metrics.functional.exaggerated import refusals_by_type
from lightning_neuralgate.metrics.functional.tally import Tally


class TypedRefusals:
    """Tally of refusals by type of prompt.

    Args:
        groups_of: returns the names of the groups that a type belongs to.
        is_partial: whether an answer refuses in part only, by the judge.
    """

    def __init__(self, groups_of: Callable[[str], Sequence[str]], is_partial: Callable[[AnsweredItem], bool]) -> None:
        self.groups_of, self.is_partial = groups_of, is_partial
        self.rows: list[tuple[str, str, bool | None, bool, bool]] = []

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        """See `TaskTally`."""
        for answer, refuses in zip(answers, refused, strict=True):
            kind, empty = answer.field("type", str), not answer.answer.strip()
            self.rows.append((answer.item_id, kind, refuses, self.is_partial(answer), empty))

    def tally(self) -> Tally | None:
        """See `TaskTally`."""
        if not self.rows:
            return None
        names, kinds, refused, partial, empty = (list(column) for column in zip(*sorted(self.rows), strict=True))
        groups: dict[str, list[str]] = {}
        for kind in sorted(set(kinds)):
            for group in self.groups_of(kind):
                groups.setdefault(group, []).append(kind)
        return refusals_by_type(names, kinds, refused, partial, empty, groups)
