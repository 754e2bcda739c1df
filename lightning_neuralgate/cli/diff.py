"""`neuralgate diff`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.errors import WeightFilesError
from lightning_neuralgate.models.loading import model_folder


def add_arguments(parser: ArgumentParser) -> None:
    """Two models, or an edit's file."""
    add_config(parser)
    parser.add_argument(
        "--base", type=str | None, default=None, help="Model before the edit (folder, hub or smol-llava)."
    )
    parser.add_argument("--edited", type=Path | None, default=None, help="Folder of the model after it.")
    parser.add_argument("--out", type=Path | None, default=None, help="Write the edit to this file.")
    parser.add_argument("--edit", type=Path | None, default=None, help="Instead of two models: the file of an edit.")


def run(options: Namespace) -> None:
    """Print what changed, and save it if asked."""
    models = (options.base, options.edited)
    if options.edit is not None and models == (None, None) and options.out is None:
        delta = EditDelta.load(options.edit)
    elif options.edit is None and None not in models:
        delta = EditDelta.between(model_folder(options.base), options.edited)
    else:
        raise WeightFilesError(
            "give --base and --edited (and --out to keep what changed), or --edit alone to read a file"
        )
    print("\n".join(delta.described()))
    if options.out is not None:
        delta.save(options.out)
        print(f"edit written to {options.out}")
