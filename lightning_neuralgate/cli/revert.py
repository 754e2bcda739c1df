"""`neuralgate revert`: undo an edit."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_delta
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.models.loading import model_folder


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate revert`."""
    add_delta(parser, "edited")


def run(options: Namespace) -> None:
    """Undo the edit, and write the base model."""
    EditDelta.load(options.edit).revert(model_folder(options.model), options.out)
    show(f"base model written to {options.out}")
