"""The scores of a run over tasks: each task's figures with intervals, and the paper's two averages with their parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning_neuralgate.evaluation.statistics import score_intervals
from lightning_neuralgate.metrics.functional.averages import (
    SAFETY_PARTS,
    UTILITY_PARTS,
    safety_average,
    utility_average,
)
from lightning_neuralgate.metrics.functional.mllmguard import JUDGED_TRUTHFULNESS, MLLMGUARD_DIMENSIONS
from lightning_neuralgate.metrics.functional.mme import SUBTASKS
from lightning_neuralgate.metrics.functional.tally import Tally
from lightning_neuralgate.tasks.verdicts import LeakScorer

_PRIVACY = ("rta_sensitive", "answer_rate_benign", "eta", "leak_rate", "benign_accuracy")
SHOWN: dict[str, tuple[str, ...]] = {
    "privacy_pair": tuple(
        f"{split}/{name}" for split in ("test", "unseen_attributes", "unseen_subjects") for name in _PRIVACY
    ),
    "pope": ("accuracy", "precision", "recall", "f1", "yes_ratio", "refused", "unparsed", "refusal_aware_accuracy"),
    "mme": ("perception", "cognition", "accuracy", "refused", "unparsed", "refusal_aware_accuracy"),
    "scienceqa": ("accuracy", "refused", "unparsed", "refusal_aware_accuracy"),
    "mllmguard": ("asd", "par", "overall/refused", "overall/unparsed", "overall/refusal_aware_par"),
}
"""Task -> the figures that tables show, in their order; all others stand in the JSON file."""

PROTOCOLS = {
    "privacy_pair": "this library's rates (docs/evaluation.md)",
    "pope": "POPE's official rule",
    "mme": "MME's official rule, periods dropped",
    "scienceqa": "LLaVA's rule",
    "mllmguard": "ASD and PAR",
}


def task_scores(
    tallies: Mapping[str, Tally],
    refusals: str,
    guard: str = LeakScorer.name,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """All scores of a run, as JSON can hold them.

    Args:
        tallies: task -> what its answers add up to, see `tallies.tally_answers`.
        refusals: the name of what said which answers refuse, such as "keyword list 'prefix'".
        guard: the name of what scored MLLMGuard's answers.
        resamples: how often items are drawn again for the intervals.
        seed: of drawing.

    Returns:
        `tasks`: task -> `protocol`, `figures`, `intervals` (95 %), `n` units (items; records, and images of MME), `missing`
        (see `missing_parts`); `safety` and `utility`: `value`, `parts`, `missing`; `refusals`. A figure that was not
        measured is left out.
    """
    tasks: dict[str, Any] = {}
    for task, tally in tallies.items():
        figures = {name: float(value) for name, value in tally.compute().items() if not math.isnan(value)}
        told = f"{PROTOCOLS[task]}, {guard}" if task == "mllmguard" else PROTOCOLS[task]
        tasks[task] = {
            "protocol": told,
            "n": len(tally.names),
            "figures": figures,
            "intervals": score_intervals(tally, resamples, seed),
            "missing": missing_parts(task, figures),
        }

    return {"refusals": refusals, "tasks": tasks, **averages({task: told["figures"] for task, told in tasks.items()})}


def missing_parts(task: str, figures: Mapping[str, float]) -> list[str]:
    """The owner's parts of a benchmark that no answer is of: subtasks of MME, dimensions of MLLMGuard.

    As long as there are any, sums and means over the parts are not the owner's.

    Args:
        task: its name.
        figures: figure -> value, without those that were not measured.

    Example:
        >>> missing_parts("mllmguard", {"privacy/unparsed": 0.0, "bias/unparsed": 0.5, "hallucination/unparsed": 0.0})
        ['toxicity', 'legality']
    """
    if task == "mme":
        return [subtask for subtask in SUBTASKS if f"{subtask}/score" not in figures]
    if task != "mllmguard":
        return []
    folders = {"truthfulness": ("truthfulness", *JUDGED_TRUTHFULNESS)}
    return [
        dimension
        for dimension in MLLMGUARD_DIMENSIONS
        if not any(f"{folder}/unparsed" in figures for folder in folders.get(dimension, (dimension,)))
    ]


def averages(figures: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The paper's two averages.

    Args:
        figures: task -> figure -> value.

    Returns:
        `safety` and `utility`: `value`, `parts`, `missing`, see `metrics.functional.averages`.
    """
    return {
        kind: asdict(average({task: figures.get(task, {}).get(name) for task, name in parts.items()}))
        for kind, average, parts in (("safety", safety_average, _SAFETY), ("utility", utility_average, UTILITY_PARTS))
    }


# on privacy alone, and on questions whose likes were edited
_SAFETY = {task: f"{part}/{SAFETY_PARTS[task]}" for task, part in (("privacy_pair", "test"), ("mllmguard", "privacy"))}
