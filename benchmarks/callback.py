"""What the callback costs a training step, in time and in memory.

    python -m benchmarks.callback --json FILE

Trains `smol-llava` on rendered records, each mini-batch twice in a row, once gated and once not, in alternating order, and
takes the median of the ratios of such pairs. Memory is the peak of a process of its own for each side (three each, in
turn, medians compared). `overhead` and `memory_overhead` are fractions of the plain side; in the keys that all benchmarks
have, the gated side is the fast one. Both agree if training one batch behind a gate that is open everywhere ends with the
weights of training without one, to 1e-6 of their norm.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from benchmarks.edit import batches, edit, floor_flops, random_gate
from benchmarks.side_by_side import Cost, compare, finish, forget_peak, matmul_rate, opened, parser, peak_memory
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.gate.autograd import SCOPES
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.rows import MaskedRows

WARM_UP = 2


class EveryOtherStep(NeuralGateCallback):
    """The callback, at work only where it is told to be."""

    gated = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        while self._masked_rows:  # a plain step does without them
            self._masked_rows.popitem()[1].remove()
        if self.gated:
            if self.scope == "all":
                self._masked_rows = {
                    id(optimizer): MaskedRows(self._modules, optimizer) for optimizer in trainer.optimizers
                }
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.gated:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)


class Stopwatch(Callback):
    """Says which step of a pair is gated, and how long both take; stands before the gate."""

    def __init__(self, gate: EveryOtherStep) -> None:
        self.gate = gate
        self.steps: list[tuple[bool, float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pair, second = divmod(batch_idx, 2)
        self.gate.gated = (pair + second) % 2 == 0
        finish()
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        finish()
        self.steps.append((self.gate.gated, time.perf_counter() - self.start))

    def pairs(self) -> Iterator[tuple[float, float]]:
        """Seconds (plain, gated) of each pair after the warm-up."""
        for first, second in zip(self.steps[2 * WARM_UP :: 2], self.steps[2 * WARM_UP + 1 :: 2], strict=True):
            seconds = dict([first, second])
            yield seconds[False], seconds[True]


def fit(args: argparse.Namespace, model: Any, processor: Any, arm: str) -> Stopwatch:
    """Train; `arm` is `both`, or `gated` or `plain` alone."""
    seed_everything(0, verbose=False)
    steps = (args.pairs if arm == "both" else 1) + WARM_UP
    found = batches(processor, steps, 3)
    gate = EveryOtherStep(random_gate(model, args.layer, found), args.scope, tau=0.5)
    watch = Stopwatch(gate)
    editor = PrivacyEditModule(model, [args.layer])
    callbacks: dict[str, list[Callback]] = {"both": [watch, gate], "gated": [gate], "plain": []}
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1, devices=1, logger=CSVLogger(folder) if args.logged else False, log_every_n_steps=1,
            enable_checkpointing=False, enable_model_summary=False, callbacks=callbacks[arm], limit_val_batches=0,
            enable_progress_bar=arm == "both",
        )  # fmt: skip
        forget_peak()
        trainer.fit(editor, DataLoader([batch for batch in found for _ in range(2)], batch_size=None))  # type: ignore[arg-type]
    return watch


def difference(model: Any, layer: int, found: list[dict[str, Any]]) -> float:
    """How far a gate that is open everywhere leads from training without one, in norms of the weight."""
    (_, gated), (_, plain) = (
        edit(model, layer, found, gate) for gate in (random_gate(model, layer, found, True), None)
    )
    return float((gated - plain).norm() / plain.norm())


def memory_of(arm: str, options: list[str]) -> int:
    command = [sys.executable, "-m", "benchmarks.callback", *options, "--arm", arm]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return int(done.stdout.split()[-1])


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--layer", type=int, default=10)
    made.add_argument("--scope", choices=SCOPES, default="subject_last")
    made.add_argument("--pairs", type=int, default=12, help="pairs of steps")
    made.add_argument("--logged", action="store_true", help="log in every step what the gate passes and blocks")
    made.add_argument("--arm", choices=("gated", "plain"), help=argparse.SUPPRESS)
    args, model, processor = opened(made)
    if args.arm is not None:
        fit(args, model, processor, args.arm)
        print(peak_memory())
        return
    pairs = list(fit(args, model, processor, "both").pairs())
    options = ["--model", args.model, "--geometry", args.geometry, "--layer", str(args.layer), "--scope", args.scope]
    memory: dict[str, list[int]] = {"plain": [], "gated": []}
    for _ in range(3):
        for arm, peaks in memory.items():
            peaks.append(memory_of(arm, options))
    plain, gated = (
        Cost(statistics.median(pair[side] for pair in pairs), int(statistics.median(memory[arm])))
        for side, arm in enumerate(("plain", "gated"))
    )
    batch = batches(processor, 1, 3)
    floor = floor_flops(model, args.layer, batch[0]) / matmul_rate(model.device, model.dtype)
    off = difference(model, args.layer, batch)
    overhead = {
        "overhead": statistics.median(gated / plain for plain, gated in pairs) - 1,
        "memory_overhead": gated.peak_memory / plain.peak_memory - 1,
    }
    compare(args, plain, gated, off <= 1e-6, floor, difference=off, **overhead)


if __name__ == "__main__":
    main()
