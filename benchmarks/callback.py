"""What the callback costs a training step, in time and in memory.

    python -m benchmarks.callback --json FILE

Trains `smol-llava` on rendered records, each mini-batch twice in a row, once gated and once not, in alternating order, and
takes the median of the ratios of such pairs. Memory is the peak of a process of its own for each side (three each, in
turn, medians compared). JSON: `overhead` and `memory_overhead`, as fractions of the plain side; `seconds_plain`,
`seconds_gated`, `pairs`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from benchmarks.side_by_side import finish, forget_peak, peak_memory
from lightning_neuralgate.cache import written_whole
from lightning_neuralgate.callback import NeuralGateCallback
from lightning_neuralgate.closed_rows import ClosedRows
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.records import PrivacyRecord, QueryPair
from lightning_neuralgate.data.rendered import render_splits
from lightning_neuralgate.editor import PrivacyEditModule
from lightning_neuralgate.gate import NeuralGate
from lightning_neuralgate.gating import SCOPES
from lightning_neuralgate.identity import ModelIdentity
from lightning_neuralgate.models.loading import load_model

WARM_UP = 2


class EveryOtherStep(NeuralGateCallback):
    """The callback, at work only where it is told to be."""

    gated = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        while self._closed:  # a plain step does without them
            self._closed.popitem()[1].remove()
        if self.gated:
            if self.scope == "all":
                self._closed = {id(optimizer): ClosedRows(self._gated, optimizer) for optimizer in trainer.optimizers}
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


def fit(model_name: str, layer: int, scope: Any, pairs: int, arm: str, logged: bool = False) -> Stopwatch:
    """Train; `arm` is `both`, or `gated` or `plain` alone."""
    seed_everything(0, verbose=False)
    model, processor = load_model(model_name)
    identity = ModelIdentity.of(model)
    with TemporaryDirectory() as folder:
        splits = render_splits(Path(folder), 0, edit_pairs=4)
        data = PrivacyPairDataModule(splits._replace(edit=told(splits.edit)), processor, pairs_per_batch=3)
        batches = [batch for _, batch in zip(range(pairs + WARM_UP), data.pairs_dataloader(), strict=False)]
    subjects = {subject: None for batch in batches for subject in batch["subject"] if subject}
    rates = {subject: {layer: torch.rand(identity.hidden_size)} for subject in subjects}
    gate = EveryOtherStep(NeuralGate(rates, identity, dict.fromkeys(rates, 1)), scope, tau=0.5)
    watch = Stopwatch(gate)
    editor = PrivacyEditModule(model, [layer])
    callbacks: dict[str, list[Callback]] = {"both": [watch, gate], "gated": [gate], "plain": []}
    steps = [batch for batch in batches for _ in range(2)]
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1, devices=1, logger=CSVLogger(folder) if logged else False, log_every_n_steps=1,
            enable_checkpointing=False, enable_model_summary=False, callbacks=callbacks[arm], limit_val_batches=0,
            enable_progress_bar=arm == "both",
        )  # fmt: skip
        forget_peak()
        trainer.fit(editor, DataLoader(steps, batch_size=None))  # type: ignore[arg-type]
    return watch


def told(records: list[PrivacyRecord]) -> list[PrivacyRecord]:
    """Records with the truth as benign target: what is trained does not matter here."""
    return [record.model_copy(update={"pairs": tuple(map(_told, record.pairs))}) for record in records]


def _told(pair: QueryPair) -> QueryPair:
    return pair.model_copy(update={"benign_target": f"It is {pair.benign_truth}"})


def memory_of(arm: str, options: list[str]) -> int:
    command = [sys.executable, "-m", "benchmarks.callback", *options, "--arm", arm]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol-llava")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--scope", choices=SCOPES, default="subject_last")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of steps")
    parser.add_argument("--logged", action="store_true", help="log in every step what the gate passes and blocks")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--arm", choices=("gated", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm is not None:
        fit(args.model, args.layer, args.scope, 1, args.arm)
        print(peak_memory())
        return
    pairs = list(fit(args.model, args.layer, args.scope, args.pairs, "both", args.logged).pairs())
    options = ["--model", args.model, "--layer", str(args.layer), "--scope", args.scope]
    memory: dict[str, list[int]] = {"plain": [], "gated": []}
    for _ in range(3):
        for arm, peaks in memory.items():
            peaks.append(memory_of(arm, options))
    plain, gated = (statistics.median(memory[arm]) for arm in ("plain", "gated"))
    results = {
        "overhead": statistics.median(gated / plain for plain, gated in pairs) - 1,
        "memory_overhead": gated / plain - 1,
        "seconds_plain": statistics.median(plain for plain, _ in pairs),
        "seconds_gated": statistics.median(gated for _, gated in pairs),
        "pairs": len(pairs),
        "scope": args.scope,
        "logged": args.logged,
        "model": args.model,
    }
    print("| scope | plain step | gated step | overhead | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: |")
    print(
        f"| {args.scope} | {results['seconds_plain']:.3f} s | {results['seconds_gated']:.3f} s "
        f"| {results['overhead']:+.2%} | {results['memory_overhead']:+.2%} |"
    )
    if args.json is not None:
        with written_whole(args.json) as draft:
            draft.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
