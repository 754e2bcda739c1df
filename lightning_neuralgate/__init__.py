"""Neural Gate for PyTorch Lightning: teach a vision-language model to refuse private questions, neuron by neuron."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
    from lightning_neuralgate.data.rendering.dataset import render_splits
    from lightning_neuralgate.edit.delta import EditDelta
    from lightning_neuralgate.edit.editor import PrivacyEditModule
    from lightning_neuralgate.evaluation.callback import RefusalMetricsCallback
    from lightning_neuralgate.gate.callback import NeuralGateCallback
    from lightning_neuralgate.gate.key_collector import KeyCollector
    from lightning_neuralgate.gate.keys import InputCovariance
    from lightning_neuralgate.gate.neural_gate import NeuralGate
    from lightning_neuralgate.locate.locator import PrivacyLocatorModule
    from lightning_neuralgate.metrics import (
        BenignAccuracy,
        ExpectToAnswer,
        LeakAtK,
        LeakRate,
        PartialLeak,
        RefuseToAnswerRate,
        TruthRank,
    )
    from lightning_neuralgate.models.loading import load_model
    from lightning_neuralgate.tasks.callback import TaskMetricsCallback
    from lightning_neuralgate.tasks.evaluate import evaluate
    from lightning_neuralgate.tasks.runner import answer_tasks

__version__ = "0.1.0"
__all__ = [
    "BenignAccuracy",
    "EditDelta",
    "ExpectToAnswer",
    "InputCovariance",
    "KeyCollector",
    "LeakAtK",
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
    "TruthRank",
    "answer_tasks",
    "evaluate",
    "load_model",
    "render_splits",
]

_LAZY_IMPORTS = {
    "BenignAccuracy": "metrics",
    "EditDelta": "edit.delta",
    "ExpectToAnswer": "metrics",
    "InputCovariance": "gate.keys",
    "KeyCollector": "gate.key_collector",
    "LeakAtK": "metrics",
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
    "TruthRank": "metrics",
    "answer_tasks": "tasks.runner",
    "evaluate": "tasks.evaluate",
    "load_model": "models.loading",
    "render_splits": "data.rendering.dataset",
}
"""Public name -> the module it is imported from on first use."""


def __getattr__(name: str) -> Any:
    # torch, transformers and lightning take seconds to import; `neuralgate --help` should not wait for them
    if name in _LAZY_IMPORTS:
        value = getattr(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS[name]}"), name)
        _register_models()
        return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_models() -> None:
    """Register MiniGPT-4 with transformers' Auto classes, if these have been imported.

    Without it they would load a MiniGPT-4 folder as a bare tokenizer, without a warning.
    """
    if "transformers.models.auto" in sys.modules:
        importlib.import_module(f"{__name__}.models.minigpt4")


_register_models()
