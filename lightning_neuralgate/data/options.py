"""Which data to use, as plain options that can stand in a YAML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_neuralgate.data.authors import read_authors_json
from lightning_neuralgate.data.records import RecordSplits, RetentionItem, read_records, read_retention, stop
from lightning_neuralgate.data.rendering.dataset import RECORDS_NAME
from lightning_neuralgate.data.splits import split_records
from lightning_neuralgate.errors import DataFormatError


@dataclass
class DataOptions:
    """Which data: a folder made by `neuralgate render`, or PrivacyPair files in the authors' format.

    Attributes:
        folder: folder with records.jsonl, made by `neuralgate render`.
        retention: JSON lines of questions that an edit has to leave alone ({"query": ..., "image": ...}), for its retention
            term; `neuralgate render` writes such a file.
        files: PrivacyPair JSON files of the method's authors.
        image_root: folder that the image paths in `files` are relative to.
        unseen: subjects of `files` that no edit may see.
        unseen_attributes: attributes, sensitive and benign, that no edit of `files` may ask for.
        max_edit: of `files`, at most so many records of a subject are used for editing.
        edit_share: of `files`, at most this share of a subject's records is used for editing.
        seed: of `files`, seeds which records are used for editing.
    """

    folder: Path | None = None
    retention: Path | None = None
    files: Sequence[Path] = ()
    image_root: Path | None = None
    unseen: Sequence[str] = ()
    unseen_attributes: Sequence[str] = ()
    max_edit: int = 10
    edit_share: float = 1 / 3
    seed: int = 0

    def check(self) -> None:
        """See to it that one source is named.

        Raises:
            DataFormatError: neither or both are.
        """
        if (self.folder is None) == (not self.files):
            raise DataFormatError("name the data: either --data.folder, or --data.files with --data.image_root")
        self.images()

    def read(self, on_broken: Callable[[DataFormatError], None] = stop) -> RecordSplits:
        """The records, split.

        Args:
            on_broken: takes the error of each bad record of `folder`. In `files` one always stops: without it others would be
                records of the test, some of which the edit has seen.

        Raises:
            DataFormatError: neither or both sources are named, or one of them is wrong.
        """
        self.check()
        if self.folder is not None:
            return read_records(self.folder / RECORDS_NAME, self.folder, on_broken)
        assert self.image_root is not None
        records = [record for file in self.files for record in read_authors_json(file, self.image_root)]
        return split_records(records, self.unseen, self.max_edit, self.edit_share, self.seed, self.unseen_attributes)

    def read_retention(self) -> list[RetentionItem]:
        """The ordinary questions of the retention term, if any; their images are relative to the file's folder."""
        return [] if self.retention is None else read_retention(self.retention, self.retention.parent)

    def refuse_retention(self, why: str) -> None:
        """See to it that no retention questions are named where they would change nothing.

        Raises:
            DataFormatError: they are.
        """
        if self.retention is not None:
            raise DataFormatError(f"{why}; leave --data.retention out")

    def images(self) -> Path:
        """The folder that all pictures are below."""
        root = self.folder or self.image_root
        if root is None:
            raise DataFormatError("--data.files needs --data.image_root, the folder its image paths are relative to")
        return root
