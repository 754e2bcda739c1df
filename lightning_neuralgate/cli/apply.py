"""`neuralgate apply`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_delta
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.models.loading import model_folder


def add_arguments(parser: ArgumentParser) -> None:
    """An edit and the model it belongs to."""
    add_delta(parser, "base")


def run(options: Namespace) -> None:
    """Make an edit."""
    EditDelta.load(options.edit).apply(model_folder(options.model), options.out)
    print(f"edit made; model written to {options.out}")
