"""The gate in transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lightning_neuralgate.gate.gating import Gating
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.positions import PositionRule, Scope


class HFGateCallback(Gating, TrainerCallback):
    """Gate the gradients in transformers' Trainer, as `NeuralGateCallback` does in Lightning's.

    The Trainer does not pass batches to its callbacks, so subjects are found in the inputs of the model: give `tokenizer`,
    or `find_subjects`, a function of the model's inputs. Rules that need more of a batch take a function of the inputs, too,
    such as `Divergence(twins=...)`. It trains bit-identically to `NeuralGateCallback` on one process, and is tested under
    DDP; DeepSpeed and FSDP are not tested with it. Nothing is logged. A resumed run does not check the gate, and the averages
    of `ConflictRows` start anew in it.

    The Trainer itself needs accelerate (`pip install accelerate`).

    Args:
        gate: the gate, or a folder or hub repository to load it from; None if `keep` is given.
        scope: the positions, as in `NeuralGateCallback`.
        settings: its other arguments.

    Raises:
        ValueError, GateMismatchError, UnsupportedSetupError: as `NeuralGateCallback`.

    Example:
        >>> def trainer_of(model, args, data, processor):
        ...     from transformers import Trainer
        ...     return Trainer(model, args, train_dataset=data, callbacks=[HFGateCallback("gate", tokenizer=processor)])
    """

    def __init__(
        self, gate: NeuralGate | str | Path | None, scope: Scope | PositionRule = "subject_last", **settings: Any
    ) -> None:
        if gate is not None and settings.get("tokenizer") is None and settings.get("find_subjects") is None:
            raise ValueError(
                "transformers' Trainer passes no batch to its callbacks: pass tokenizer or find_subjects, a function of the "
                "model's inputs"
            )
        super().__init__(gate, scope, **settings)
        self.reads_inputs = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.detach()  # an earlier training may have ended with an error
        if not state.global_step:  # the weights of a resumed run have changed already
            self.check_fits(kwargs["model"])
        optimizer = kwargs["optimizer"]  # accelerate wraps it
        self.attach(kwargs["model"], [getattr(optimizer, "optimizer", optimizer)], state.global_step > 0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.start_batch()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.after_backward()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = kwargs["optimizer"]
        self.before_step(getattr(optimizer, "optimizer", optimizer))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.end_batch()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ungated_rows.warn()
        self.detach()
