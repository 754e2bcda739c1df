"""How far several judges agree on which answers of a run refuse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional.agreement import cohens_kappa
from lightning_neuralgate.tasks.item import AnsweredItem
from lightning_neuralgate.tasks.questions import chunks
from lightning_neuralgate.tasks.verdicts import NamedRefusalJudge

ALL_TASKS = "all"
_AT_ONCE = 2048


def judges_agreement(answers: Iterable[AnsweredItem], judges: Sequence[NamedRefusalJudge]) -> list[dict[str, Any]]:
    """Cohen's kappa of every two judges, task by task and over all of them.

    Args:
        answers: of one run.
        judges: say which answers refuse.

    Returns:
        A row for each task and pair: `task`, `first`, `second`, `kappa` (None where both judges gave one and the same
        verdict throughout), `agreement`, `n` answers. Answers on which one of the two was not clear are left out. The task
        of the rows over all answers is "all"; they are left out where there is but one task.

    Raises:
        DataFormatError: two judges of one name.

    Example:
        >>> from lightning_neuralgate.tasks.verdicts import KeywordListJudge
        >>> told = ["Sorry.", "No, there is none.", "Red.", "Blue."]
        >>> rows = [AnsweredItem("pope", str(n), "", "", "yes", {}, answer) for n, answer in enumerate(told)]
        >>> (row,) = judges_agreement(rows, [KeywordListJudge("prefix"), KeywordListJudge("xstest")])
        >>> row["kappa"], row["agreement"], row["n"]
        (0.5, 0.75, 4)
    """
    names = [judge.name for judge in judges]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise DataFormatError(f"{twice[0]} is among the judges twice; it agrees with itself")
    verdicts: dict[str, dict[str, list[bool | None]]] = {}
    for batch in chunks(answers, _AT_ONCE):
        for judge in judges:
            for one, verdict in zip(batch, judge(batch), strict=True):
                for task in (one.task, ALL_TASKS):
                    verdicts.setdefault(task, {}).setdefault(judge.name, []).append(verdict)
    tasks = sorted(task for task in verdicts if task != ALL_TASKS)
    return [row for task in (*tasks, *([ALL_TASKS] if len(tasks) > 1 else [])) for row in _pairs(task, verdicts[task])]


def _pairs(task: str, verdicts: Mapping[str, Sequence[bool | None]]) -> list[dict[str, Any]]:
    rows = []
    for first, second in combinations(verdicts, 2):
        clear = [pair for pair in zip(verdicts[first], verdicts[second], strict=True) if None not in pair]
        found = cohens_kappa([one for one, _ in clear], [other for _, other in clear])
        told = {name: None if math.isnan(value) else value for name, value in found._asdict().items()}
        rows.append({"task": task, "first": first, "second": second, **told})
    return rows
