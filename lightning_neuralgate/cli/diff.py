"""`neuralgate diff`: show or write the difference between two models."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.errors import WeightFilesError
from lightning_neuralgate.models.loading import model_folder


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate diff`."""
    add_config(parser)
    parser.add_argument(
        "--base", type=str | None, default=None, help="Base model: a folder, a Hub repository or smol-llava."
    )
    parser.add_argument("--edited", type=Path | None, default=None, help="Folder of the edited model.")
    parser.add_argument("--out", type=Path | None, default=None, help="Edit file to write.")
    parser.add_argument(
        "--edit", type=Path | None, default=None, help="Edit file to show, instead of --base and --edited."
    )


def run(options: Namespace) -> None:
    """Print the changes, and write them to an edit file if `--out` is given."""
    models = (options.base, options.edited)
    if options.edit is not None and models == (None, None) and options.out is None:
        delta = EditDelta.load(options.edit)
    elif options.edit is None and None not in models:
        delta = EditDelta.between(model_folder(options.base), options.edited)
    else:
        raise WeightFilesError(
            "give --base and --edited (and --out to write an edit file), or only --edit to show an edit file"
        )
    show("\n".join(delta.described()))
    if options.out is not None:
        delta.save(options.out)
        show(f"edit file written to {options.out}")
