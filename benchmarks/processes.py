"""Stage 1 in several processes with one thread each (DDP), compared with one process.

    python -m benchmarks.processes --json FILE

Both sides locate the same records with Lightning. The time runs from the start of training in all processes until all of them
have the gate. Both sides agree if all activity rates are equal.
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
from benchmarks.measure import make_parser, report
from benchmarks.records import with_benign_targets
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.runtime.process import process_group_closed

SUBJECTS = ("passport", "student_id", "receipt")


class Stopwatch(Callback):
    """Measure the seconds of training, with barriers before and after."""

    seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        self._start = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        self.seconds = time.perf_counter() - self._start


def locate(args: argparse.Namespace, folder: Path, processes: int) -> None:
    """Locate as one of several processes; rank 0 writes the gate and the seconds to `folder`."""
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
    data = PrivacyPairDataModule(splits._replace(edit=with_benign_targets(splits.edit)[: args.records]), processor)
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
    """Seconds of a run with some number of processes, and its gate."""
    with TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
        options = {
            "geometry": args.geometry, "model": args.model, "layer": args.layer, "records": args.records,
            "steps": args.steps, "processes": processes, "folder": folder,
        }  # fmt: skip
        command = [*launch, "-m", "benchmarks.processes", *(f"--{name}={value}" for name, value in options.items())]
        finished = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
        if finished.returncode:
            raise RuntimeError(f"{processes} processes exited with {finished.returncode}:\n{finished.stderr[-4000:]}")
        return float((Path(folder) / "seconds").read_text()), NeuralGate.from_pretrained(Path(folder) / "gate")


def same_rates(first: NeuralGate, second: NeuralGate) -> bool:
    """Whether all activity rates are equal."""
    return first.subjects == second.subjects and all(
        torch.equal(first.rates(subject, layer), second.rates(subject, layer))
        for subject in first.subjects
        for layer in first.layers
    )


def processes_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that `run` reads."""
    parser = make_parser(description)
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--records", type=int, default=12)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--processes", type=int, default=2)
    return parser


def main() -> None:
    parser = processes_parser(__doc__ or "")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        with process_group_closed():
            locate(args, args.folder, args.processes)
        return
    (single_seconds, single_gate), (seconds, gate) = (run(args, processes) for processes in (1, args.processes))
    results: dict[str, Any] = {
        "seconds_one": single_seconds,
        f"seconds_{args.processes}": seconds,
        "ratio": single_seconds / seconds,
        "agree": same_rates(gate, single_gate),
        **{name: value for name, value in vars(args).items() if name not in ("json", "folder", "threads")},
        "threads_each": 1,
    }
    report(results, args.json)


if __name__ == "__main__":
    main()
