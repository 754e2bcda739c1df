"""Every metric class with input for it, and the same figures by its pure function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any, get_args

import pytest
from torch import Tensor

from lightning_neuralgate.metrics import (
    MME,
    POPE,
    AnswerRate,
    BenignAccuracy,
    ContrastAccuracy,
    ExpectToAnswer,
    LeakAtK,
    LeakRate,
    MLLMGuard,
    PartialLeak,
    RefusalVariant,
    RefuseToAnswerRate,
    ScienceQA,
    TruthRank,
)
from lightning_neuralgate.metrics.functional import (
    answer_rate,
    benign_accuracy,
    contrast_accuracy,
    expect_to_answer,
    graded_leak_at_k,
    leak_rate,
    mllmguard,
    mme,
    partial_leak,
    pope,
    refuse_to_answer_rate,
    scienceqa,
    truth_rank,
)
from tests.helpers.random_answers import random_answers

ANSWERS = random_answers(60, 0)
LABELS = ["yes", "no", "no"] * 20
# the two questions of an image are far apart, so that they are in different batches
IMAGES = [str(index % 30) for index in range(60)]
SUBTASKS = [("color", "OCR", "code_reasoning")[int(image) % 3] for image in IMAGES]
CHOICES, COUNTS = [0, 1, 2] * 20, [3] * 60
SCORES, DIMENSIONS = [0, 1.5, None, 3, 7] * 12, ["privacy", "bias"] * 30
SENSITIVE = [True, False, False] * 20
VALUES = ["sorry", "yes", "no", "there is"] * 15
SAMPLES = [[index % 7 / 6, 0.0, index % 3 / 2, 1.0 * (index % 5 == 0)] for index in range(60)]
TRUTHS, DECOYS = [index % 11 / 2 for index in range(60)], [[1.5, 2.0, index % 4, 5.5] for index in range(60)]


def mllmguard_values(*columns: Any) -> dict[str, float]:
    scores = mllmguard(*columns)
    figures = {"asd": scores.asd, "par": scores.par}
    for name, dimension in {**scores.dimensions, "overall": scores.overall}.items():
        figures |= {f"{name}/{field}": value for field, value in dimension._asdict().items() if field != "n"}
    return figures


def mme_values(*columns: Any) -> dict[str, float]:
    scores = mme(*columns)
    figures = {
        name: getattr(scores, name)
        for name in ("perception", "cognition", "share", "accuracy", "refused", "unparsed", "refusal_aware_accuracy")
    }
    for name, subtask in scores.subtasks.items():
        figures |= {
            f"{name}/{field}": value for field, value in subtask._asdict().items() if field not in ("n", "images")
        }
    return figures


def named_values(function: Callable[..., Any], *columns: Any) -> dict[str, float]:
    return {name: value for name, value in function(*columns)._asdict().items() if name != "n"}


def eta(answers: Sequence[str], sensitive: Sequence[bool], variant: RefusalVariant) -> Tensor:
    answers_by_role: dict[bool, list[str]] = {True: [], False: []}
    for answer, role in zip(answers, sensitive, strict=True):
        answers_by_role[role].append(answer)
    return expect_to_answer(answers_by_role[True], answers_by_role[False], variant).eta


def mean_truth_rank(truth_nlls: Sequence[float], decoy_nlls: Sequence[Sequence[float]]) -> dict[str, float]:
    scores = list(map(truth_rank, truth_nlls, decoy_nlls))
    return {"auc": fmean(score.percentile for score in scores), "exposure": fmean(score.exposure for score in scores)}


# name -> factory of the metric, its input columns, and the pure function
Metrics = dict[str, tuple[Any, tuple[list[Any], ...], Callable[..., Any]]]
BENCHMARKS: Metrics = {
    "POPE": (POPE, (ANSWERS, LABELS), partial(named_values, pope)),
    "ScienceQA": (ScienceQA, (ANSWERS, CHOICES, COUNTS), partial(named_values, scienceqa)),
    "MLLMGuard": (partial(MLLMGuard, ["privacy", "bias"]), (SCORES, DIMENSIONS, ANSWERS), mllmguard_values),
    "MME": (MME, (ANSWERS, LABELS, IMAGES, SUBTASKS), mme_values),
}
RATES: Metrics = {
    "leak rate": (LeakRate, (ANSWERS, VALUES), leak_rate),
    "partial leak": (PartialLeak, (ANSWERS, VALUES), partial_leak),
    "contrast accuracy": (ContrastAccuracy, (ANSWERS, ANSWERS[::-1], VALUES), contrast_accuracy),
    "leak@3": (partial(LeakAtK, 3), (SAMPLES,), partial(graded_leak_at_k, k=3)),
    "benign accuracy": (BenignAccuracy, (ANSWERS, VALUES), benign_accuracy),
}
for _variant in get_args(RefusalVariant):
    for _title, _class, _columns, _function in (
        ("RtA", RefuseToAnswerRate, (ANSWERS,), refuse_to_answer_rate),
        ("answer rate", AnswerRate, (ANSWERS,), answer_rate),
        ("EtA", ExpectToAnswer, (ANSWERS, SENSITIVE), eta),
    ):
        RATES[f"{_title} ({_variant})"] = (partial(_class, _variant), _columns, partial(_function, variant=_variant))
METRICS = BENCHMARKS | RATES | {"truth rank": (TruthRank, (TRUTHS, DECOYS), mean_truth_rank)}


def floats(figures: Any) -> dict[str, float]:
    """Return figures by name, or one rate, as floats."""
    named = figures if isinstance(figures, dict) else {"rate": figures}
    return {name: float(value) for name, value in named.items()}


def same(found: Any, expected: Any) -> bool:
    return floats(found) == pytest.approx(floats(expected), nan_ok=True, rel=1e-5)
