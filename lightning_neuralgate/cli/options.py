"""Argument groups that several subcommands share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lightning_neuralgate.data.authors import read_authors_json
from lightning_neuralgate.data.records import RecordSplits, read_records
from lightning_neuralgate.data.rendered import RECORDS_NAME
from lightning_neuralgate.data.splits import split_records
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.models.loading import EMBEDDED, Precision, load_model


@dataclass
class ModelOptions:
    """Which model.

    Attributes:
        name: a folder, a hub repository, or smol-llava for the embedded model.
        dtype: precision of the weights.
        trust_remote_code: run code that comes with the checkpoint.
    """

    name: str = EMBEDDED
    dtype: Precision = "float32"
    trust_remote_code: bool = False

    def load(self) -> tuple[Any, Any]:
        """The model and its processor."""
        return load_model(self.name, self.dtype, self.trust_remote_code)


@dataclass
class DataOptions:
    """Which data: a folder made by `neuralgate render`, or PrivacyPair files in the authors' format.

    Attributes:
        folder: folder with records.jsonl, made by `neuralgate render`.
        files: PrivacyPair JSON files of the method's authors.
        image_root: folder that the image paths in `files` are relative to.
        unseen: subjects of `files` that no edit may see.
        max_edit: of `files`, at most so many records of a subject are used for editing.
        edit_share: of `files`, at most this share of a subject's records is used for editing.
        seed: of `files`, seeds which records are used for editing.
    """

    folder: Path | None = None
    files: Sequence[Path] = ()
    image_root: Path | None = None
    unseen: Sequence[str] = ()
    max_edit: int = 10
    edit_share: float = 1 / 3
    seed: int = 0

    def read(self) -> RecordSplits:
        """The records, split.

        Raises:
            DataFormatError: neither or both sources are named, or one of them is wrong.
        """
        if (self.folder is None) == (not self.files):
            raise DataFormatError("name the data: either --data.folder, or --data.files with --data.image_root")
        if self.folder is not None:
            return read_records(self.folder / RECORDS_NAME, self.folder)
        if self.image_root is None:
            raise DataFormatError("--data.files needs --data.image_root, the folder its image paths are relative to")
        records = [record for file in self.files for record in read_authors_json(file, self.image_root)]
        return split_records(records, self.unseen, self.max_edit, self.edit_share, self.seed)

    def images(self) -> Path:
        """The folder that all pictures are below."""
        root = self.folder or self.image_root
        if root is None:
            raise DataFormatError("--data.files needs --data.image_root, the folder its image paths are relative to")
        return root


def add_config(parser: ArgumentParser) -> None:
    """`--config FILE`: any of the options from a YAML file."""
    parser.add_argument("--config", action="config", help="YAML file with any of these options.")


def add_trainer(parser: ArgumentParser, **defaults: Any) -> None:
    """All of the Trainer's own options as `--trainer.*`, with this command's defaults."""
    from lightning.pytorch import Trainer

    parser.add_class_arguments(Trainer, "trainer", instantiate=True)
    quiet = {"enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    parser.set_defaults({f"trainer.{name}": value for name, value in {**quiet, **defaults}.items()})
