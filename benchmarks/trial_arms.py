"""The arms of the trial: every gate, its controls, and edits without a gate, each with at most four tries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Callback

from benchmarks.trial_edits import TrialExperiment
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.demo.experiment import EditSettings
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.positions import Divergence
from lightning_neuralgate.gate.row_rules import ConflictRows
from lightning_neuralgate.locate.column_contrast import locate_columns

Callbacks = Callable[[TrialExperiment, EditSettings, Mapping[str, Any]], Sequence[Callback]]
"""Function of the experiment, the settings and the other entries of a try that returns the edit's callbacks."""


class Arm(NamedTuple):
    """A kind of edit.

    Attributes:
        about: what it is, in plain words.
        settings: settings that differ from those of all arms.
        tries: what is tried on validation data: settings, and entries for `callbacks`; `scale` is the share of the change
            that is kept.
        callbacks: callbacks of the edit; None for no gate.
    """

    about: str
    settings: Mapping[str, Any]
    tries: Sequence[Mapping[str, Any]]
    callbacks: Callbacks | None = None


def _gated(change: Callable[[NeuralGate, int], NeuralGate] = lambda gate, seed: gate) -> Callbacks:
    return lambda experiment, settings, more: [
        NeuralGateCallback(change(experiment.gate, experiment.seed), settings.scope, settings.tau)
    ]


def _divergence(experiment: TrialExperiment, settings: EditSettings, more: Mapping[str, Any]) -> list[Callback]:
    # the located rows do not matter where every token is open or closed
    return [NeuralGateCallback(experiment.gate.filled(1.0), more.get("position", Divergence()))]


def _columns(experiment: TrialExperiment, settings: EditSettings, more: Mapping[str, Any]) -> list[Callback]:
    experiment.reset()
    data = PrivacyPairDataModule(experiment.splits, experiment.processor, seed=experiment.seed)
    columns = locate_columns(experiment.model, data.pairs_dataloader(), [settings.layer], more["share"])
    return [NeuralGateCallback(experiment.gate.filled(1.0), columns=columns)]


def _conflicts(experiment: TrialExperiment, settings: EditSettings, more: Mapping[str, Any]) -> list[Callback]:
    return [NeuralGateCallback(experiment.gate.filled(1.0), "all", rows=ConflictRows())]


def _keys(scope: Any = "subject_last", with_gate: bool = False) -> Callbacks:
    def callbacks(
        experiment: TrialExperiment, settings: EditSettings, more: Mapping[str, Any]
    ) -> list[NeuralGateCallback]:
        keep = experiment.keys(settings)
        gate = (
            (experiment.gate if with_gate else experiment.gate.filled(1.0))
            if with_gate or scope != "subject_last"
            else None
        )
        strength = {name: more[name] for name in ("keep_share", "keep_soft") if name in more}
        return [NeuralGateCallback(gate, scope, settings.tau, keep=keep, **strength)]

    return callbacks


_ALL_FORMS: dict[str, Any] = {"retention_forms": "all"}
_TRIES: tuple[dict[str, Any], ...] = (
    {},
    {"retention_weight": 1.0, "retention_per_batch": 2},
    {"retention_weight": 1.0, "retention_per_batch": 2, "epochs": 8},
    {"retention_weight": 1.0, "retention_per_batch": 4, "lr": 3e-3, "epochs": 8},
)
"""Tries of all mini-batch edits whose gate has no strength of its own."""
_PAPER: dict[str, Any] = {"schedule": "paper", "retention_per_batch": 0}
_PAPER_TRIES = tuple({"lr": lr, "epochs": 1} for lr in (1e-4, 3e-4, 1e-3, 3e-3))
_STRONG = _TRIES[2]
_SHARES: tuple[dict[str, Any], ...] = tuple({**_STRONG, "keep_share": share} for share in (0.8, 0.9, 0.95, 0.98))

ARMS: dict[str, Arm] = {
    "today": Arm("today's default: no gate, open retention questions", {}, ({},)),
    "ungated": Arm("no gate, retention questions in all forms", _ALL_FORMS, _TRIES),
    "ungated, kl": Arm(
        "no gate, KL to the unedited model on retention questions",
        {**_ALL_FORMS, "retention_loss": "kl"},
        _TRIES,
    ),
    "scaled down": Arm(
        "no gate, the change scaled down",
        _ALL_FORMS,
        tuple({**_STRONG, "scale": scale} for scale in (0.8, 0.6, 0.5, 0.4)),
    ),
    "paper": Arm("the paper's schedule and gate", _PAPER, _PAPER_TRIES, _gated()),
    "paper, ungated": Arm("the paper's schedule, no gate", _PAPER, _PAPER_TRIES),
    "subject's last token": Arm("the paper's gate in mini-batches", _ALL_FORMS, _TRIES, _gated()),
    "all positions": Arm(
        "the located rows at all positions", {**_ALL_FORMS, "scope": "all"},
        ({**_STRONG, "tau": 0.5}, {**_STRONG, "tau": 0.3}, {**_STRONG, "tau": 0.15}, {**_TRIES[3], "tau": 0.3}), _gated(),
    ),
    "all positions, shuffled": Arm(
        "as many rows, shuffled, at all positions", {**_ALL_FORMS, "scope": "all"},
        ({**_STRONG, "tau": 0.5}, {**_STRONG, "tau": 0.3}, {**_STRONG, "tau": 0.15}, {**_TRIES[3], "tau": 0.3}),
        _gated(NeuralGate.shuffled),
    ),
    "all positions, closed": Arm(
        "no rows at all positions", {**_ALL_FORMS, "scope": "all"}, ({},), _gated(lambda gate, seed: gate.filled(0.0)),
    ),
    "divergence": Arm("from the first token on in which twins differ", _ALL_FORMS, _TRIES, _divergence),
    "tail": Arm(
        "behind the question only", _ALL_FORMS, tuple({**more, "position": "tail"} for more in _TRIES), _divergence
    ),
    "columns": Arm(
        "input units that tell sensitive from benign queries", _ALL_FORMS,
        tuple({**_STRONG, "share": share} for share in (0.05, 0.1, 0.2, 0.4)), _columns,
    ),
    "conflict rows": Arm("rows whose gradients do not conflict", _ALL_FORMS, _TRIES, _conflicts),
    "keys": Arm("the change kept out of ordinary inputs", _ALL_FORMS, _SHARES, _keys()),
    "keys, soft": Arm(
        "the change kept out of ordinary inputs in proportion", _ALL_FORMS,
        tuple({**_STRONG, "keep_soft": strength} for strength in (0.3, 1.0, 3.0, 10.0)), _keys(),
    ),
    "keys and divergence": Arm("both", _ALL_FORMS, _SHARES, _keys("divergence")),
    "keys and all positions": Arm("both", {**_ALL_FORMS, "tau": 0.3}, _SHARES, _keys("all", with_gate=True)),
    "keys, recovery": Arm(
        "the change kept out of ordinary inputs, with recovery and indirect rows",
        {**_ALL_FORMS, "recovery_share": 1.0, "indirect_share": 0.5}, _SHARES, _keys(),
    ),
    "ungated, recovery": Arm(
        "no gate, with recovery and indirect rows",
        {**_ALL_FORMS, "recovery_share": 1.0, "indirect_share": 0.5}, _TRIES,
    ),
}  # fmt: skip
