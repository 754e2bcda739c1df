"""Locating in two processes, beside one, each with one thread.

    python -m benchmarks.processes --json FILE

Both sides locate the same records under Lightning: one process alone, then as many as `--processes` says under DDP. Timed is
the training, from where all processes are ready to where each knows the gate. They agree if every activity rate is the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.geometries import load_geometry
from benchmarks.records import told
from benchmarks.side_by_side import parser, tell
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.runtime.process import process_group_closed

SUBJECTS = ("passport", "student_id", "receipt")


class Stopwatch(Callback):
    """Seconds from where all processes are ready to where all are done."""

    seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        self._start = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        self.seconds = time.perf_counter() - self._start


def locate(args: argparse.Namespace, folder: Path, processes: int) -> None:
    """Locate as one of so many processes; leaves the gate and the seconds in `folder`."""
    torch.set_num_threads(1)
    model, processor = load_geometry(args.geometry, args.model)
    splits = render_splits(
        folder / "data",
        0,
        edit_records=-(-args.records // 3),
        test_records=1,
        edit_pairs=1,
        test_pairs=1,
        subjects=SUBJECTS,
    )
    data = PrivacyPairDataModule(splits._replace(edit=told(splits.edit)[: args.records]), processor)
    locator = PrivacyLocatorModule(model, [args.layer], max_steps=args.steps, stop_loss=-1.0)
    locator._losses.fast_path.restore(True)
    watch = Stopwatch()
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", max_epochs=1, logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, callbacks=[watch],
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(locator, datamodule=data)
    if trainer.is_global_zero:
        locator.gate.save_pretrained(folder / "gate")
        (folder / "seconds").write_text(str(watch.seconds))


def run(args: argparse.Namespace, processes: int) -> tuple[float, NeuralGate]:
    """Seconds of so many processes, and what they find."""
    with TemporaryDirectory() as folder:
        options = ["--geometry", args.geometry, "--model", args.model, "--layer", args.layer, "--records", args.records]
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes),
            *(
                "-m",
                "benchmarks.processes",
                *options,
                "--steps",
                args.steps,
                "--processes",
                processes,
                "--folder",
                folder,
            ),
        ]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=Path(__file__).parents[1])
        if done.returncode:
            raise RuntimeError(f"{processes} processes ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return float((Path(folder) / "seconds").read_text()), NeuralGate.from_pretrained(Path(folder) / "gate")


def same(one: NeuralGate, other: NeuralGate) -> bool:
    """Whether every activity rate is the same."""
    return one.subjects == other.subjects and all(
        torch.equal(one.rates(subject, layer), other.rates(subject, layer))
        for subject in one.subjects
        for layer in one.layers
    )


def options(description: str) -> argparse.ArgumentParser:
    """What `run` asks for, and the processes."""
    made = parser(description)
    made.add_argument("--layer", type=int, default=10)
    made.add_argument("--records", type=int, default=12)
    made.add_argument("--steps", type=int, default=25)
    made.add_argument("--processes", type=int, default=2)
    return made


def main() -> None:
    made = options(__doc__ or "")
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = made.parse_args()
    if args.folder is not None:
        with process_group_closed():
            locate(args, args.folder, args.processes)
        return
    (alone, expected), (together, found) = (run(args, processes) for processes in (1, args.processes))
    results: dict[str, Any] = {
        "seconds_one": alone,
        f"seconds_{args.processes}": together,
        "ratio": alone / together,
        "agree": same(found, expected),
        **{name: value for name, value in vars(args).items() if name not in ("json", "folder", "threads")},
        "threads_each": 1,
    }
    tell(results, args.json)


if __name__ == "__main__":
    main()
