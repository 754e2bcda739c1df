"""Argument groups that several subcommands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.models.loading import EMBEDDED, Precision, load_model

UNFINISHED = "unfinished"
"""Folder, inside that of the result, from which a run that was killed goes on."""


@dataclass
class ModelOptions:
    """Which model.

    Attributes:
        name: a folder, a hub repository, or an embedded model: smol-llava, smol-minigpt.
        dtype: precision of the weights.
        trust_remote_code: run code that comes with the checkpoint.
    """

    name: str = EMBEDDED
    dtype: Precision = "float32"
    trust_remote_code: bool = False

    def load(self) -> tuple[Any, Any]:
        """The model and its processor."""
        return load_model(self.name, self.dtype, self.trust_remote_code)


def check_folder(option: str, folder: Path) -> None:
    """See to it that a folder can be written to.

    Raises:
        DataFormatError: it is a file, or lies below one.
    """
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), None)
    if there is not None and not there.is_dir():
        raise DataFormatError(f"{option} {folder}: {there} is a file; name a folder")


def add_config(parser: ArgumentParser) -> None:
    """`--config FILE`: any of the options from a YAML file."""
    parser.add_argument("--config", action="config", help="YAML file with any of these options.")


def add_workers(parser: ArgumentParser) -> None:
    """`--num_workers`: who makes the batches."""
    parser.add_argument(
        "--num_workers", type=int, default=0, help="Processes that make batches ahead; 0: none, batches are the same."
    )


def add_trainer(parser: ArgumentParser, **defaults: Any) -> None:
    """All of the Trainer's own options as `--trainer.*`, with this command's defaults."""
    from lightning.pytorch import Trainer

    parser.add_class_arguments(Trainer, "trainer", instantiate=True)
    quiet = {"enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    parser.set_defaults({f"trainer.{name}": value for name, value in {**quiet, **defaults}.items()})


def add_delta(parser: ArgumentParser, side: str) -> None:
    """An edit's file, the model on one side of it, and the folder for the other side."""
    add_config(parser)
    parser.add_argument("--edit", type=Path, required=True, help="File of the edit.")
    parser.add_argument(
        "--model", type=str, required=True, help=f"Its {side} model: a folder, hub repository or smol-llava."
    )
    parser.add_argument("--out", type=Path, required=True, help="Folder for the result; must not exist.")
