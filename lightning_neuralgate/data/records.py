"""PrivacyPair records: one image, one subject, and query pairs that differ in a single attribute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.parsing import parse_json_line, read_lines

RECORDS_NAME = "records.jsonl"
"""File of the records in a data folder."""


class StrictModel(BaseModel):
    """Immutable model that rejects unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class QueryPair(StrictModel):
    """A sensitive and a benign query built from the same template.

    Attributes:
        sensitive: query that the edited model should refuse.
        benign: query that the edited model should still answer.
        refusal: refusal prefix, the training target of `sensitive`.
        benign_target: training target of `benign`: the first words of the unedited model's answer; None until generated.
        sensitive_attribute, benign_attribute: the attributes the queries ask for, or "" if unknown.
        sensitive_truth, benign_truth: the true values, or None if unknown.
        benign_synonyms: other wordings of `benign_truth` that count as correct.
    """

    sensitive: str = Field(min_length=1)
    benign: str = Field(min_length=1)
    refusal: str = Field(min_length=1)
    benign_target: str | None = None
    sensitive_attribute: str = ""
    benign_attribute: str = ""
    sensitive_truth: str | None = None
    benign_truth: str | None = None
    benign_synonyms: tuple[str, ...] = ()


class PrivacyRecord(StrictModel):
    """One image with its subject and query pairs. The locator uses the first pair only."""

    record_id: str = Field(min_length=1)
    subject: str = Field(min_length=1)
    image: Path
    pairs: tuple[QueryPair, ...] = Field(min_length=1)

    def queries(self) -> Iterator[tuple[str, str]]:
        """Yield (query, attribute) of each sensitive and benign query; the attribute is "" if unknown."""
        for pair in self.pairs:
            yield pair.sensitive, pair.sensitive_attribute
            yield pair.benign, pair.benign_attribute


class RetentionItem(StrictModel):
    """A general question whose answer an edit must not change.

    Attributes:
        query: the question.
        image: the picture it is about, if any.
        target: the unedited model's answer; None until generated.
        earlier: messages of the chat before it, as (role, text), see `QueryRow`.
    """

    query: str = Field(min_length=1)
    image: Path | None = None
    target: str | None = None
    earlier: tuple[tuple[Literal["system", "user", "assistant"], str], ...] = ()

    @model_serializer(mode="wrap")
    def _without_empty_chat(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # lines and checksums of questions without a chat are those of earlier versions
        return {name: value for name, value in serialize(self).items() if name != "earlier" or value}


class RecordSplits(NamedTuple):
    """Records for editing and for testing.

    Attributes:
        edit: records the edit trains on.
        test: new records of the edited subjects and attributes, with differently worded queries.
        unseen_attributes: new records of the edited subjects, with attributes that no edit query asks for.
        unseen_subjects: records of subjects that are not edited at all.
        validation: new records of the edited subjects and attributes, on which settings may be chosen.
    """

    edit: list[PrivacyRecord]
    test: list[PrivacyRecord]
    unseen_attributes: list[PrivacyRecord]
    unseen_subjects: list[PrivacyRecord]
    validation: list[PrivacyRecord] = []  # noqa: RUF012  # never appended to


def resolve_inside(root: Path, relative: str, place: str) -> Path:
    """Resolve an image path relative to its root folder.

    Raises:
        DataFormatError: naming `place`, if the path leaves the root (also through a symlink), or is not a file or no
            possible name of one.
    """
    try:
        base = root.resolve()
        path = (base / relative).resolve()
        if not path.is_relative_to(base):
            raise DataFormatError(f"{place}: image path '{relative}' leaves the image root {root}")
        if not path.is_file():
            raise DataFormatError(f"{place}: image {path} does not exist; is '{root}' the right image root?")
    except (ValueError, OSError, RuntimeError) as error:  # a null character, a long name, a link to itself
        if isinstance(error, DataFormatError):
            raise
        raise DataFormatError(f"{place}: image path {relative[:80]!r} is not a file name: {error}") from error
    return path


def validation_message(error: ValidationError) -> str:
    """Format the first error of a failed validation as "field 'name': problem (found value)"."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"]) or "record"
    found = repr(problem.get("input"))
    return f"field '{field}': {problem['msg']} (found {found[:80]})"


def records_checksum(records: Iterable[PrivacyRecord | RetentionItem]) -> str:
    """Compute a checksum of records or retention items from their fields and the content of their images.

    Image paths are excluded, and so are generated targets, which may be filled in later.
    """
    digest = hashlib.sha256()
    for record in records:
        content = record.model_dump(mode="json", exclude={"image", "target"})
        for pair in content.get("pairs", []):
            pair.pop("benign_target")
        digest.update(json.dumps(content, sort_keys=True).encode())
        digest.update(b"" if record.image is None else hashlib.sha256(Path(record.image).read_bytes()).digest())
    return digest.hexdigest()[:16]


def write_records(path: Path, splits: RecordSplits, image_root: Path) -> None:
    """Write records as JSON lines: one record with its split per line, images relative to `image_root`."""
    items = splits._asdict().items()
    _write_lines(
        path, ({"split": split, **_dump(record, image_root)} for split, records in items for record in records)
    )


def write_retention(path: Path, items: Iterable[RetentionItem], image_root: Path) -> None:
    """Write retention items as JSON lines, images relative to `image_root`."""
    _write_lines(path, (_dump(item, image_root) for item in items))


def read_records(
    path: Path, image_root: Path, on_broken: Callable[[DataFormatError], None] | None = None
) -> RecordSplits:
    """Read a file written by `write_records`.

    Args:
        path: the JSON lines file.
        image_root: folder that image paths are relative to.
        on_broken: called with the error of each bad record, which is then skipped; by default the error is raised.

    Raises:
        DataFormatError: naming file, line and field of a bad record. A true value without letters and digits is an
            error too, since no answer could be compared with it.
    """
    splits = RecordSplits([], [], [], [], [])
    for place, content in _json_lines(path):
        try:
            split, record = _parse_record(content(), place, image_root)
        except DataFormatError as error:
            if on_broken is None:
                raise
            on_broken(error)
        else:
            getattr(splits, split).append(record)
    return splits


def read_retention(path: Path, image_root: Path) -> list[RetentionItem]:
    """Read retention items from JSON lines of `{"query": ..., "image": ..., "earlier": ...}`; only the query is required.

    Raises:
        DataFormatError: naming file, line and field of a bad item.
    """
    items = []
    for place, content in _json_lines(path):
        try:
            item = RetentionItem.model_validate(content())
        except ValidationError as error:
            raise DataFormatError(f"{place}: {validation_message(error)}") from error
        image = None if item.image is None else resolve_inside(image_root, str(item.image), place)
        items.append(item.model_copy(update={"image": image}))
    return items


def _dump(record: PrivacyRecord | RetentionItem, image_root: Path) -> dict[str, Any]:
    content = record.model_dump(mode="json")
    if record.image is not None:
        content["image"] = record.image.resolve().relative_to(image_root.resolve()).as_posix()
    return content


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def _json_lines(path: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield place and parser of each non-blank line, so that a caller can skip a bad one."""
    if not path.is_file():
        raise DataFormatError(f"there is no file {path}; `neuralgate render` writes such files")
    for number, line in read_lines(path):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, partial(parse_json_line, line, place)


def _parse_record(content: dict[str, Any], place: str, image_root: Path) -> tuple[str, PrivacyRecord]:
    try:
        split = content.pop("split")
        if not isinstance(split, str) or split not in RecordSplits._fields:
            raise KeyError(split)
        record = PrivacyRecord.model_validate(content)
    except ValidationError as error:
        raise DataFormatError(f"{place}: {validation_message(error)}") from error
    except KeyError as error:
        raise DataFormatError(
            f"{place}: not a record with a 'split' out of {', '.join(RecordSplits._fields)}: {error!r}"
        ) from error
    _check_truths(record, place)
    return split, record.model_copy(update={"image": resolve_inside(image_root, str(record.image), place)})


def _check_truths(record: PrivacyRecord, place: str) -> None:
    # imported late: torchmetrics takes seconds, and reports and commands without records do not need it
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
