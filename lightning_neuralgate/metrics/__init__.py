"""Metrics of privacy editing as torchmetrics classes; `metrics.functional` has them as pure functions."""

from lightning_neuralgate.metrics.functional import ExpectToAnswerParts, RefusalVariant
from lightning_neuralgate.metrics.leak import BenignAccuracy, LeakRate, PartialLeak
from lightning_neuralgate.metrics.refusal import AnswerRate, ExpectToAnswer, RefuseToAnswerRate

__all__ = [
    "AnswerRate",
    "BenignAccuracy",
    "ExpectToAnswer",
    "ExpectToAnswerParts",
    "LeakRate",
    "PartialLeak",
    "RefusalVariant",
    "RefuseToAnswerRate",
]
