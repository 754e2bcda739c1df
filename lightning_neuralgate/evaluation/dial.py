"""Measure an edit at several shares of its strength, after its last step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_neuralgate.data.records import PrivacyRecord
from lightning_neuralgate.edit.dial import DIAL_SCALES, Dial, DialPoint
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.callback import RefusalMetricsCallback


def check_dial_records(records: Sequence[PrivacyRecord]) -> None:
    """Check that an edit can be dialled on some records.

    Raises:
        DataFormatError: there are none, or none with a true sensitive value.
    """
    if not any(pair.sensitive_truth for record in records for pair in record.pairs):
        missing = "true value (sensitive_truth) in these records" if records else "record of the split 'validation'"
        raise DataFormatError(
            f"the dial is set on validation records, and the data has no {missing}; add some, or render the data with "
            "`neuralgate render --validation_records 5`"
        )


class DialCallback(Callback):
    """Find the least share of an edit that keeps to a leak rate, on validation records, after the last training step.

    For `PrivacyEditModule`. The weights are those of the full edit again afterwards; `module.unedited.scaled(dial.scale)`
    sets those of the choice. Processes share the queries. Answers are greedy.

    Args:
        records: validation records, which neither train nor test.
        processor: the model's processor.
        max_leak: largest accepted leak rate.

    Attributes:
        dial: the result, after training.

    Raises:
        DataFormatError: see `check_dial_records`.
    """

    def __init__(self, records: Sequence[PrivacyRecord], processor: Any, max_leak: float = 0.05) -> None:
        check_dial_records(records)
        self.max_leak = max_leak
        self.dial: Dial | None = None
        self._rates = RefusalMetricsCallback({"validation": records}, processor, every_n_steps=0)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, PrivacyEditModule)
        frontier = []
        for scale in DIAL_SCALES:
            with pl_module.unedited.scaled(scale):
                values = self._rates.evaluate(trainer, pl_module)
            rates = {name.removeprefix("held_out/validation/"): value for name, value in values.items()}
            names = ("leak_rate", "rta_sensitive", "answer_rate_benign")
            frontier.append(DialPoint(scale, *(rates[name] for name in names)))
        self.dial = Dial(self.max_leak, frontier)
