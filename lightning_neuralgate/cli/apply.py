"""`neuralgate apply`: apply an edit file to a base model."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeFloat

from lightning_neuralgate.cli.options import add_delta
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.models.loading import model_folder


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate apply`."""
    add_delta(parser, "base")
    parser.add_argument(
        "--scale", type=NonNegativeFloat, default=1.0, help="Share c of the edit: the weights become W0 + c (W - W0)."
    )


def run(options: Namespace) -> None:
    """Apply the edit, and write the edited model."""
    EditDelta.load(options.edit).apply(model_folder(options.model), options.out, options.scale)
    show(f"edited model written to {options.out}")
