"""Data sources as plain options, for the command line and YAML files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_neuralgate.data.authors import read_authors_json
from lightning_neuralgate.data.records import RECORDS_NAME, RecordSplits, RetentionItem, read_records, read_retention
from lightning_neuralgate.data.splits import split_records
from lightning_neuralgate.errors import DataFormatError


@dataclass
class DataOptions:
    """The data to use: a folder written by `neuralgate render`, or PrivacyPair files in the authors' format.

    Attributes:
        folder: folder with records.jsonl, as written by `neuralgate render`.
        retention: JSON lines of questions whose answers an edit must not change ({"query": ..., "image": ...}), for the
            edit's retention term; `neuralgate render` writes such a file.
        files: PrivacyPair JSON files in the authors' format.
        image_root: folder that the image paths in `files` are relative to.
        unseen: subjects of `files` to keep out of the edit.
        unseen_attributes: attributes, sensitive and benign, to keep out of the edit of `files`.
        max_edit: largest number of records per subject of `files` used for editing.
        edit_share: largest share of a subject's records in `files` used for editing.
        seed: seed for choosing the edit records of `files`.
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
        """Check that exactly one data source is given.

        Raises:
            DataFormatError: there is none, or there are two.
        """
        if (self.folder is None) == (not self.files):
            raise DataFormatError("name the data: either --data.folder, or --data.files with --data.image_root")
        self.images()

    def inputs(self) -> dict[str, str | Path | None]:
        """Return option -> file or folder that is read, for `check_output`."""
        files = {f"--data.files {number}": file for number, file in enumerate(self.files or ())}
        return {"--data.folder": self.folder, "--data.retention": self.retention, **files}

    def read(self, on_broken: Callable[[DataFormatError], None] | None = None) -> RecordSplits:
        """Read the records and their splits.

        Args:
            on_broken: called with the error of each bad record of `folder`, which is then skipped; by default the error
                is raised. A bad record in `files` is always an error: skipping it would change the random split, and
                records that an edit has trained on could end up in the test.

        Raises:
            DataFormatError: the options name no data or two sources, or a file is malformed.
        """
        self.check()
        if self.folder is not None:
            return read_records(self.folder / RECORDS_NAME, self.folder, on_broken)
        assert self.image_root is not None
        records = [record for file in self.files for record in read_authors_json(file, self.image_root)]
        return split_records(records, self.unseen, self.max_edit, self.edit_share, self.seed, self.unseen_attributes)

    def read_retention(self) -> list[RetentionItem]:
        """Read the retention questions, if any; image paths are relative to the file's folder."""
        return [] if self.retention is None else read_retention(self.retention, self.retention.parent)

    def refuse_retention(self, why: str) -> None:
        """Reject retention questions in a command that does not use them.

        Raises:
            DataFormatError: `retention` is given; the message starts with `why`.
        """
        if self.retention is not None:
            raise DataFormatError(f"{why}; leave --data.retention out")

    def images(self) -> Path:
        """Return the folder that contains all images."""
        root = self.folder or self.image_root
        if root is None:
            raise DataFormatError("--data.files needs --data.image_root, the folder its image paths are relative to")
        return root
