"""The gate in a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_neuralgate.gate.gating import Gating
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.positions import PositionRule, Scope


@contextmanager
def gated(
    model: nn.Module,
    gate: NeuralGate | str | Path | None,
    optimizer: Optimizer | Sequence[Optimizer],
    scope: Scope | PositionRule = "subject_last",
    **settings: Any,
) -> Iterator[Gating]:
    """Gate the gradients of a model while the block runs, as `NeuralGateCallback` does in a Trainer.

    The hooks are removed at the end of the block, also after an error.

    Args:
        model: the Hugging Face model, or a module that contains it.
        gate: the gate, or a folder or hub repository to load it from; None if `keep` is given.
        optimizer: the optimizer, or several, of the model's parameters. Their `step` prepares the gate for the next step. A
            step that a GradScaler skips is not seen: with `scope="all"`, rows unmasked in it count for the next one, too.
        scope: the positions, as in `NeuralGateCallback`.
        settings: its other arguments.

    Yields:
        A `Gating`. Call `start_batch(batch)` before each batch's forward pass. With `tokenizer`, which finds the subjects in
        the token ids, this is only needed where gradients are accumulated under activation checkpointing.

    Raises:
        ValueError, GateMismatchError, UnsupportedSetupError: as `NeuralGateCallback`.

    Example:
        >>> def train(model, batches, optimizer, gate):
        ...     with gated(model, gate, optimizer, scope="divergence") as gating:
        ...         for batch in batches:
        ...             gating.start_batch(batch)
        ...             loss_of(model, batch).backward()
        ...             optimizer.step()
        ...             optimizer.zero_grad()
    """
    gating = Gating(gate, scope, **settings)
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    gating.check_fits(model)
    handles = [one.register_step_pre_hook(lambda one, *_: gating.before_step(one)) for one in optimizers]
    try:
        gating.attach(model, optimizers)
        if gating.reads_inputs:
            gating.start_batch()
        yield gating
        gating.ungated_rows.warn()
    finally:
        gating.detach()
        for handle in handles:
            handle.remove()
