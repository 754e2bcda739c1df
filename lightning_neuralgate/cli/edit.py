"""`neuralgate edit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import seed_everything

from lightning_neuralgate.callback import NeuralGateCallback
from lightning_neuralgate.cli.options import ModelOptions, add_config, add_trainer
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.editor import PrivacyEditModule
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gating import Scope


def add_arguments(parser: ArgumentParser) -> None:
    """Options of stage 2."""
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, help="Folder for the edited model.")
    parser.add_argument("--gate", type=Path | None, default=None, help="Folder of the gate; left out: an ungated edit.")
    parser.add_argument("--scope", type=Scope, default="subject_last", help="Positions at which the gate applies.")
    parser.add_argument("--tau", type=float, default=0.3, help="Dimensions with an activity rate above it stay open.")
    parser.add_argument(
        "--pairs_per_batch", type=int, default=4, help="Query pairs in a mini-batch (minibatch schedule)."
    )
    parser.add_argument(
        "--retention_per_batch", type=int, default=0, help="Ordinary questions from --data.retention in each batch."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the order of mini-batches.")
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(PrivacyEditModule, "editor", skip={"model", "processor"}, instantiate=False)
    add_trainer(parser, max_epochs=1, limit_val_batches=2)


def run(options: Namespace) -> None:
    """Edit, and save the model."""
    seed_everything(options.seed, verbose=False)
    retention = options.data.read_retention()
    asked = (bool(retention), options.retention_per_batch > 0, options.editor.retention_weight > 0)
    if any(asked) and not all(asked):
        raise DataFormatError(
            "the retention term needs all of --data.retention, --retention_per_batch and --editor.retention_weight"
        )
    model, processor = options.model.load()
    arguments: dict[str, Any] = options.editor.as_dict()
    paper = arguments["schedule"] == "paper"
    data = PrivacyPairDataModule(
        options.data.read(),
        processor,
        retention,
        pairs_per_batch=1 if paper else options.pairs_per_batch,
        retention_per_batch=options.retention_per_batch,
        shuffle=not paper,
        seed=options.seed,
    )
    editor = PrivacyEditModule(model, processor=processor, **arguments)
    if options.gate is not None:
        options.trainer.callbacks.append(NeuralGateCallback(options.gate, options.scope, options.tau))
    options.trainer.fit(editor, datamodule=data)
    editor.save_pretrained(options.out)
    if options.trainer.is_global_zero:
        print(f"edited model written to {options.out}")
