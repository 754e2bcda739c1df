"""Predictions of `neuralgate plan`, compared with measured peak memory.

    python -m benchmarks.plan --dtype bfloat16 --json FILE
    python -m benchmarks.plan --geometry llava-1.5-7b --layer 11 --pairs 1 --json FILE

Runs a few steps of both stages as their commands do, the comparison of cached and full passes included, and reports the peak
of the process, or of the GPU, next to the predicted one, and both above the memory that the loaded model takes (`above`). The
number of tokens is that of the measured batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from benchmarks import edit, locate
from benchmarks.measure import make_parser, parse_and_load, report
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.models.costs import Memory, Workload, image_tokens, model_shapes
from lightning_neuralgate.runtime.cost import measure, peak_memory


def workload(model: Any, batch: Mapping[str, Any], pairs: int = 1) -> Workload:
    """Return the workload of a measured batch."""
    pictures = image_tokens(model.config)
    assert pictures is not None
    return Workload(pictures, batch["input_ids"].shape[1] - pictures, batch["target_columns"], pairs_per_batch=pairs)


def compare(stage: str, predicted: Memory, peak: float, above: float) -> dict[str, float]:
    """Return predicted and measured peaks in MB, of the process and above the loaded model, and their ratios."""
    return {
        f"{stage}_predicted": predicted.total / 1e6,
        f"{stage}_measured": peak / 1e6,
        f"{stage}_ratio": predicted.total / peak,
        f"{stage}_above_predicted": predicted.beyond_weights / 1e6,
        f"{stage}_above_measured": above / 1e6,
        f"{stage}_above_ratio": predicted.beyond_weights / above,
    }


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=4, help="query pairs per batch of the edit")
    args, model, processor = parse_and_load(parser)
    for parameter in model.parameters():
        parameter.sum()  # weights of the checkpoint's own type are mapped from its file, and take memory once they are read
    shapes = model_shapes(model.config)
    results: dict[str, Any] = {}
    (record,) = locate.make_batches(processor, 1, 1)
    locator = PrivacyLocatorModule(model, [args.layer], max_steps=2, stop_loss=-1.0).to(model.device)
    with measure() as cost:
        locator._learn(record)
        peak = peak_memory()
    predicted = shapes.locate_memory(args.layer, workload(model, record), args.dtype)
    results |= compare("locate", predicted, peak, cost.peak_memory)
    batches = edit.make_batches(processor, 2, args.pairs)
    gate = edit.random_gate(model, args.layer, batches)
    work = workload(model, batches[0], args.pairs)
    trainer = Trainer(
        max_epochs=1, devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, limit_val_batches=0, callbacks=[NeuralGateCallback(gate, tau=0.5)],
    )  # fmt: skip
    with measure() as cost:
        trainer.fit(PrivacyEditModule(model, [args.layer]), datamodule=edit.FixedBatches(batches))
        peak = peak_memory()
    results |= compare("edit", shapes.edit_memory([args.layer], work, args.dtype), peak, cost.peak_memory)
    report(
        {**results, "tokens": work.tokens, "dtype": args.dtype, "geometry": args.geometry, "model": args.model},
        args.json,
    )


if __name__ == "__main__":
    main()
