"""`neuralgate locate`: stage 1."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import ModelOptions, add_config, add_trainer, add_workers, check_inputs
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.gate.columns import ColumnGate
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.distributed import is_sharded
from lightning_neuralgate.locate.column_contrast import locate_columns
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.runtime.files import remove_temporary_files
from lightning_neuralgate.runtime.run_folder import UNFINISHED, remove_progress, run_folder


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate locate`."""
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, help="Output folder for gate.safetensors and gate.json.")
    parser.add_argument(
        "--records_per_batch", type=int, default=1, help="Records learned in parallel; larger values use a GPU better."
    )
    parser.add_argument(
        "--columns",
        type=bool,
        default=False,
        help="Also write columns.safetensors and columns.json, for `neuralgate edit --columns`: how well each hidden unit of "
        "the layers tells sensitive from benign queries.",
    )
    add_workers(parser)
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(PrivacyLocatorModule, "locator", skip={"model", "cache_dir"}, instantiate=False)
    add_trainer(parser, max_epochs=1, logger=False)


def run(options: Namespace) -> None:
    """Locate, and save the gate. An interrupted run resumes after its finished records."""
    options.data.refuse_retention("stage 1 has no retention term")
    check_inputs(options)
    unfinished = options.out / UNFINISHED
    with run_folder(unfinished, options.trainer.is_global_zero):
        _run(options, unfinished)


def _run(options: Namespace, unfinished: Path) -> None:
    splits = options.data.read()  # fail on bad data before loading the model
    model, processor = options.model.load()
    data = PrivacyPairDataModule(
        splits, processor, records_per_batch=options.records_per_batch, num_workers=options.num_workers
    )
    locator = PrivacyLocatorModule(model, **options.locator.as_dict(), cache_dir=unfinished)
    options.trainer.fit(locator, datamodule=data)
    artifacts: list[NeuralGate | ColumnGate] = [locator.gate]
    if options.columns:
        if not is_sharded(model):
            model.to(options.trainer.strategy.root_device)  # a Trainer leaves the model on the CPU
        pairs = PrivacyPairDataModule(data.splits, processor, shuffle=False, num_workers=options.num_workers)
        artifacts.append(locate_columns(model, pairs.pairs_dataloader(), options.locator.layers))
    if options.trainer.is_global_zero:
        for artifact in artifacts:
            artifact.save_pretrained(options.out)
        remove_progress(unfinished)
        remove_temporary_files(*(options.out / name for artifact in artifacts for name in artifact.file_names))
        show("\n".join([*map(repr, artifacts), f"written to {options.out}"]))
