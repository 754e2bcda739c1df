"""`neuralgate keys`: collect the inputs of MLP output projections that ordinary prompts use."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from lightning_neuralgate.cli.options import (
    ModelOptions,
    add_config,
    add_trainer,
    add_workers,
    check_folder,
    check_inputs,
)
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.data.plain_text import plain_prompts
from lightning_neuralgate.data.prompts import PromptDataModule, ordinary_rows
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gate.key_collector import KeyCollector
from lightning_neuralgate.gate.keys import CONFIG_NAME, WEIGHTS_NAME
from lightning_neuralgate.runtime.files import remove_temporary_files


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate keys`."""
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, help=f"Output folder for {WEIGHTS_NAME} and {CONFIG_NAME}.")
    parser.add_argument(
        "--layers", type=list[NonNegativeInt], required=True, help="Decoder layers, those of the later edit."
    )
    parser.add_argument(
        "--prompts",
        type=list[Path],
        default=[],
        help="Files of ordinary prompts: JSON lines as in --data.retention, or text files (.txt) with one prompt per line.",
    )
    parser.add_argument(
        "--plain", type=NonNegativeInt, default=0, help="Number of built-in prompts without a picture to add."
    )
    parser.add_argument("--batch_size", type=PositiveInt, default=8, help="Prompts per batch and process.")
    add_workers(parser)
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_class_arguments(DataOptions, "data")
    add_trainer(parser, logger=False)


def run(options: Namespace) -> None:
    """Collect the covariance of the prompts' inputs, and save it."""
    check_inputs(options, **{f"prompts {number}": file for number, file in enumerate(options.prompts)})
    check_folder("--out", options.out)
    data = options.data
    # fail on bad data before loading the model
    records = data.read().edit if data.folder is not None or data.files else []
    questions, texts = data.read_retention(), plain_prompts()[: options.plain]
    for file in options.prompts:
        if file.suffix == ".txt":
            texts += _lines(file)
        else:
            questions += DataOptions(retention=file).read_retention()
    rows = ordinary_rows(records, questions, texts)
    if not rows:
        raise DataFormatError(
            "there are no prompts: give --prompts FILES, --data.retention FILE, --data.folder (its benign edit queries) or "
            "--plain NUMBER"
        )
    model, processor = options.model.load()
    collector = KeyCollector(model, options.layers)
    prompts = PromptDataModule(rows, processor, options.batch_size, options.num_workers)
    options.trainer.predict(collector, datamodule=prompts, return_predictions=False)
    if options.trainer.is_global_zero:
        covariance = collector.covariance
        covariance.save_pretrained(options.out)
        remove_temporary_files(options.out / WEIGHTS_NAME, options.out / CONFIG_NAME)
        show("\n".join([*covariance.described(), f"written to {options.out}"]))


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"--prompts {file} cannot be read: {error}; give a UTF-8 text file") from error
