"""PrivacyPair records: one image, one subject, and query pairs that differ in one attribute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import atomic_write


class QueryPair(BaseModel):
    """A sensitive query and a benign one, built from one template.

    Attributes:
        sensitive: query that is to be refused.
        benign: query that is to be answered.
        refusal: the refusal prefix that an edit teaches for `sensitive`.
        benign_target: what an edit keeps for `benign`: the unedited model's own answer, first words; None until made.
        sensitive_attribute, benign_attribute: what the queries ask for, where known.
        sensitive_truth, benign_truth: the true values, where known.
        benign_synonyms: other words that say `benign_truth`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sensitive: str = Field(min_length=1)
    benign: str = Field(min_length=1)
    refusal: str = Field(min_length=1)
    benign_target: str | None = None
    sensitive_attribute: str = ""
    benign_attribute: str = ""
    sensitive_truth: str | None = None
    benign_truth: str | None = None
    benign_synonyms: tuple[str, ...] = ()


class PrivacyRecord(BaseModel):
    """One image with its subject and query pairs. The first pair is the one that the locator uses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record_id: str = Field(min_length=1)
    subject: str = Field(min_length=1)
    image: Path
    pairs: tuple[QueryPair, ...] = Field(min_length=1)


class RetentionItem(BaseModel):
    """An ordinary question whose answer an edit must leave alone; `target` is the unedited model's own answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str = Field(min_length=1)
    image: Path | None = None
    target: str | None = None


class RecordSplits(NamedTuple):
    """Records for editing and for testing.

    `test` asks new records for what the edit asked others, in new words. `unseen_attributes` asks for attributes that
    no edit of that subject asked for, `unseen_subjects` about subjects that no edit ever saw.
    """

    edit: list[PrivacyRecord]
    test: list[PrivacyRecord]
    unseen_attributes: list[PrivacyRecord]
    unseen_subjects: list[PrivacyRecord]


def resolve_inside(root: Path, relative: str, place: str) -> Path:
    """Path of an image below its root.

    Raises:
        DataFormatError: the path leaves the root (also through a link), or there is no such file. `place` is named.
    """
    base = root.resolve()
    path = (base / relative).resolve()
    if not path.is_relative_to(base):
        raise DataFormatError(f"{place}: image path '{relative}' leaves the image root {root}")
    if not path.is_file():
        raise DataFormatError(f"{place}: image {path} does not exist; is '{root}' the right image root?")
    return path


def first_problem(error: ValidationError) -> str:
    """The first problem of a failed validation as 'field: what is wrong (what was found)'."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"]) or "record"
    found = repr(problem.get("input"))
    return f"field '{field}': {problem['msg']} (found {found[:80]})"


def write_records(path: Path, splits: RecordSplits, image_root: Path) -> None:
    """Write records as JSON lines, one record a line with its split, images relative to `image_root`."""
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8") as lines:
        for split, records in splits._asdict().items():
            for record in records:
                content = record.model_dump(mode="json")
                content["image"] = record.image.resolve().relative_to(image_root.resolve()).as_posix()
                lines.write(json.dumps({"split": split, **content}) + "\n")


def records_checksum(records: Iterable[PrivacyRecord | RetentionItem]) -> str:
    """Checksum of records or retention items: their fields, and their pictures' bytes in the place of their paths.

    Targets that the unedited model makes, and that may be made later, do not count.
    """
    digest = hashlib.sha256()
    for record in records:
        content = record.model_dump(mode="json", exclude={"image", "target"})
        for pair in content.get("pairs", []):
            pair.pop("benign_target")
        digest.update(json.dumps(content, sort_keys=True).encode())
        digest.update(b"" if record.image is None else hashlib.sha256(Path(record.image).read_bytes()).digest())
    return digest.hexdigest()[:16]


def write_retention(path: Path, items: Iterable[RetentionItem], image_root: Path) -> None:
    """Write retention items as JSON lines, images relative to `image_root`."""
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8") as lines:
        for item in items:
            content = item.model_dump(mode="json")
            if item.image is not None:
                content["image"] = item.image.resolve().relative_to(image_root.resolve()).as_posix()
            lines.write(json.dumps(content) + "\n")


def read_retention(path: Path, image_root: Path) -> list[RetentionItem]:
    """Read what `write_retention` wrote, or what somebody wrote by hand: `{"query": ..., "image": ...}`, image optional.

    Raises:
        DataFormatError: naming file, line and field of a bad item.
    """
    items = []
    for place, line in _lines(path):
        try:
            item = RetentionItem.model_validate_json(line)
        except ValidationError as error:
            raise DataFormatError(f"{place}: {first_problem(error)}") from error
        image = None if item.image is None else resolve_inside(image_root, str(item.image), place)
        items.append(item.model_copy(update={"image": image}))
    return items


def stop(error: DataFormatError) -> None:
    """Raise an error: what happens to bad records unless somebody takes them."""
    raise error


def read_records(path: Path, image_root: Path, on_broken: Callable[[DataFormatError], None] = stop) -> RecordSplits:
    """Read what `write_records` wrote.

    Args:
        path: the file.
        image_root: folder that image paths are relative to.
        on_broken: takes the error of each bad record, which is left out then.

    Raises:
        DataFormatError: naming file, line and field of a bad record, also of a true value without letters and digits.
    """
    splits = RecordSplits([], [], [], [])
    for place, line in _lines(path):
        try:
            split, record = _record(line, place, image_root)
        except DataFormatError as error:
            on_broken(error)
        else:
            splits._asdict()[split].append(record)
    return splits


def _record(line: str, place: str, image_root: Path) -> tuple[str, PrivacyRecord]:
    """A record and its split."""
    try:
        content: dict[str, Any] = json.loads(line)
        split = content.pop("split")
        if split not in RecordSplits._fields:
            raise KeyError(split)
        record = PrivacyRecord.model_validate(content)
    except ValidationError as error:
        raise DataFormatError(f"{place}: {first_problem(error)}") from error
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise DataFormatError(f"{place}: not a record with a 'split' of {RecordSplits._fields}: {error!r}") from error
    _check_truths(record, place)
    return split, record.model_copy(update={"image": resolve_inside(image_root, str(record.image), place)})


def _check_truths(record: PrivacyRecord, place: str) -> None:
    # torchmetrics takes seconds to import, which reports and commands without records need not wait for
    from lightning_neuralgate.metrics.functional import leaks, says_value

    for number, pair in enumerate(record.pairs):
        field = f"pairs.{number}.sensitive_truth"
        try:
            if pair.sensitive_truth is not None:
                leaks("", pair.sensitive_truth)
            field = f"pairs.{number}.benign_truth"
            if pair.benign_truth is not None:
                says_value("", pair.benign_truth, pair.benign_synonyms)
        except DataFormatError as error:
            raise DataFormatError(f"{place}: record '{record.record_id}', field '{field}': {error}") from error


def _lines(path: Path) -> list[tuple[str, str]]:
    """The lines that are not blank, each behind its place."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    except FileNotFoundError as error:
        raise DataFormatError(f"there is no file {path}; `neuralgate render` makes such files") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{path} cannot be read as UTF-8 text: {error}") from error
