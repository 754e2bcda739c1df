"""Metrics of privacy editing as torchmetrics classes; `metrics.functional` has the pure functions."""

from lightning_neuralgate.metrics.functional import ExpectToAnswerParts, RefusalVariant
from lightning_neuralgate.metrics.leak import BenignAccuracy, LeakRate, PartialLeak
from lightning_neuralgate.metrics.leak_at_k import LeakAtK
from lightning_neuralgate.metrics.mllmguard import MLLMGuard
from lightning_neuralgate.metrics.mme import MME
from lightning_neuralgate.metrics.over_refusal import ContrastAccuracy
from lightning_neuralgate.metrics.pope import POPE
from lightning_neuralgate.metrics.refusal import (
    AnswerRate,
    ExpectToAnswer,
    JudgedRefuseToAnswerRate,
    RefuseToAnswerRate,
)
from lightning_neuralgate.metrics.scienceqa import ScienceQA
from lightning_neuralgate.metrics.truth_rank import TruthRank

__all__ = [
    "MME",
    "POPE",
    "AnswerRate",
    "BenignAccuracy",
    "ContrastAccuracy",
    "ExpectToAnswer",
    "ExpectToAnswerParts",
    "JudgedRefuseToAnswerRate",
    "LeakAtK",
    "LeakRate",
    "MLLMGuard",
    "PartialLeak",
    "RefusalVariant",
    "RefuseToAnswerRate",
    "ScienceQA",
    "TruthRank",
]
