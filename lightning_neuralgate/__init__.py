"""Neural Gate for PyTorch Lightning: teach a vision-language model to refuse private questions, neuron by neuron."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
    from lightning_neuralgate.edit.delta import EditDelta
    from lightning_neuralgate.edit.editor import PrivacyEditModule
    from lightning_neuralgate.evaluation.callback import RefusalMetricsCallback
    from lightning_neuralgate.gate.callback import NeuralGateCallback
    from lightning_neuralgate.gate.neural_gate import NeuralGate
    from lightning_neuralgate.locate.locator import PrivacyLocatorModule
    from lightning_neuralgate.metrics import BenignAccuracy, ExpectToAnswer, LeakRate, PartialLeak, RefuseToAnswerRate
    from lightning_neuralgate.tasks.callback import TaskMetricsCallback

__version__ = "0.1.0"
__all__ = [
    "BenignAccuracy",
    "EditDelta",
    "ExpectToAnswer",
    "LeakRate",
    "NeuralGate",
    "NeuralGateCallback",
    "PartialLeak",
    "PrivacyEditModule",
    "PrivacyLocatorModule",
    "PrivacyPairDataModule",
    "RefusalMetricsCallback",
    "RefuseToAnswerRate",
    "TaskMetricsCallback",
]

_HOMES = {
    "BenignAccuracy": "metrics",
    "EditDelta": "edit.delta",
    "ExpectToAnswer": "metrics",
    "LeakRate": "metrics",
    "NeuralGate": "gate.neural_gate",
    "NeuralGateCallback": "gate.callback",
    "PartialLeak": "metrics",
    "PrivacyEditModule": "edit.editor",
    "PrivacyLocatorModule": "locate.locator",
    "PrivacyPairDataModule": "data.datamodule",
    "RefusalMetricsCallback": "evaluation.callback",
    "RefuseToAnswerRate": "metrics",
    "TaskMetricsCallback": "tasks.callback",
}


def __getattr__(name: str) -> Any:
    # torch, transformers and lightning take seconds to import; `neuralgate --help` should not wait for them
    if name in _HOMES:
        found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        _register_models()
        return found
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_models() -> None:
    """Let transformers' Auto classes know MiniGPT-4, where they are in use.

    Else they would answer its folders with a bare tokenizer and without a word.
    """
    if "transformers.models.auto" in sys.modules:
        importlib.import_module(f"{__name__}.models.minigpt4")


_register_models()
