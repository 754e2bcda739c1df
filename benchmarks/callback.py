"""Overhead of `NeuralGateCallback` on a training step, in time and memory.

    python -m benchmarks.callback --json FILE

Trains `smol-llava` on rendered records, each mini-batch twice in a row, once with the gate and once without, in alternating
order, and takes the median of the ratios of these pairs. Memory is the peak of a separate process per side (three runs each,
alternating; medians are compared). `overhead` and `memory_overhead` are relative to training without the gate; in the keys
common to all benchmarks, the gated side is the "fast" one. Both sides agree if training on one batch with a fully open gate
gives the weights of training without a gate, up to 1e-6 of their norm.
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

from benchmarks.edit import floor_flops, make_batches, random_gate, run_edit
from benchmarks.measure import make_parser, parse_and_load, report_comparison
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.positions import SUBJECT_SCOPES
from lightning_neuralgate.gate.rows import MaskedRowRestorer
from lightning_neuralgate.models.costs import matmul_rate
from lightning_neuralgate.runtime.cost import Cost, peak_memory, reset_peak_memory, synchronize

WARM_UP = 2


class EveryOtherStep(NeuralGateCallback):
    """The callback with a switch, `gated`."""

    gated = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        while self.row_restorers:  # ungated steps run without these hooks
            self.row_restorers.popitem()[1].remove()
        if self.gated:
            if self.scope == "all":
                self.row_restorers = {
                    id(optimizer): MaskedRowRestorer(self.modules, optimizer) for optimizer in trainer.optimizers
                }
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.gated:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)


class Stopwatch(Callback):
    """Switch the gate on for one step of each pair, and time both steps. Must precede the gate in the callbacks."""

    def __init__(self, gate: EveryOtherStep) -> None:
        self.gate = gate
        self.steps: list[tuple[bool, float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pair, second = divmod(batch_idx, 2)
        self.gate.gated = (pair + second) % 2 == 0
        synchronize()
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        synchronize()
        self.steps.append((self.gate.gated, time.perf_counter() - self.start))

    def pairs(self) -> Iterator[tuple[float, float]]:
        """Seconds (plain, gated) of each pair after the warm-up."""
        for first, second in zip(self.steps[2 * WARM_UP :: 2], self.steps[2 * WARM_UP + 1 :: 2], strict=True):
            seconds = dict([first, second])
            yield seconds[False], seconds[True]


def fit(args: argparse.Namespace, model: Any, processor: Any, arm: str) -> Stopwatch:
    """Train; `arm` is `both`, `gated` or `plain`."""
    seed_everything(0, verbose=False)
    steps = (args.pairs if arm == "both" else 1) + WARM_UP
    batches = make_batches(processor, steps, 3)
    gate = EveryOtherStep(random_gate(model, args.layer, batches), args.scope, tau=0.5)
    watch = Stopwatch(gate)
    editor = PrivacyEditModule(model, [args.layer])
    callbacks: dict[str, list[Callback]] = {"both": [watch, gate], "gated": [gate], "plain": []}
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1, devices=1, logger=CSVLogger(folder) if args.logged else False, log_every_n_steps=1,
            enable_checkpointing=False, enable_model_summary=False, callbacks=callbacks[arm], limit_val_batches=0,
            enable_progress_bar=arm == "both",
        )  # fmt: skip
        reset_peak_memory()
        trainer.fit(editor, DataLoader([batch for batch in batches for _ in range(2)], batch_size=None))  # type: ignore[arg-type]
    return watch


def difference_of_open_gate(model: Any, layer: int, batches: list[dict[str, Any]]) -> float:
    """Relative difference between the weights trained with a fully open gate and without a gate."""
    open_gate = random_gate(model, layer, batches, fully_open=True)
    (_, gated), (_, plain) = (run_edit(model, layer, batches, gate) for gate in (open_gate, None))
    return float((gated - plain).norm() / plain.norm())


def peak_memory_of(arm: str, options: list[str]) -> int:
    """Peak memory of training one side in a new process."""
    command = [sys.executable, "-m", "benchmarks.callback", *options, "--arm", arm]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return int(finished.stdout.split()[-1])


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--scope", choices=SUBJECT_SCOPES, default="subject_last")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of steps")
    parser.add_argument("--logged", action="store_true", help="log the gradient norms of the gate in every step")
    parser.add_argument("--arm", choices=("gated", "plain"), help=argparse.SUPPRESS)
    args, model, processor = parse_and_load(parser)
    if args.arm is not None:
        fit(args, model, processor, args.arm)
        print(peak_memory())
        return
    pairs = list(fit(args, model, processor, "both").pairs())
    options = ["--model", args.model, "--geometry", args.geometry, "--layer", str(args.layer), "--scope", args.scope]
    memory: dict[str, list[int]] = {"plain": [], "gated": []}
    for _ in range(3):
        for arm, peaks in memory.items():
            peaks.append(peak_memory_of(arm, options))
    plain, gated = (
        Cost(statistics.median(pair[side] for pair in pairs), int(statistics.median(memory[arm])))
        for side, arm in enumerate(("plain", "gated"))
    )
    batches = make_batches(processor, 1, 3)
    floor = floor_flops(model, args.layer, batches[0]) / matmul_rate(model.device, model.dtype)
    difference = difference_of_open_gate(model, args.layer, batches)
    overhead = {
        "overhead": statistics.median(gated / plain for plain, gated in pairs) - 1,
        "memory_overhead": gated.peak_memory / plain.peak_memory - 1,
    }
    report_comparison(args, plain, gated, difference <= 1e-6, floor, difference=difference, **overhead)


if __name__ == "__main__":
    main()
