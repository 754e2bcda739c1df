"""Reader for the PrivacyPair files of the method's authors (JSON; images are not part of them).

A record's first pair is its rewrite prompt with the first benign query (same template); the others are the paraphrases
with the benign queries, in order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, first_problem, resolve_inside
from lightning_neuralgate.errors import DataFormatError


class _Target(BaseModel):
    str_: str = Field(alias="str", min_length=1)


class _Rewrite(BaseModel):
    prompt: str = Field(min_length=1)
    target_new: _Target
    subject: str = Field(min_length=1)


class _Case(BaseModel):
    """One entry of a file. Other fields (generation prompts, variants without the subject) are not needed here."""

    model_config = ConfigDict(extra="ignore")

    case_id: int | str
    image: str = Field(min_length=1)
    requested_rewrite: _Rewrite
    paraphrase_prompts: list[str] = Field(min_length=1)
    neighborhood_prompts: list[str] = Field(min_length=1)


def read_authors_json(path: str | Path, image_root: str | Path) -> list[PrivacyRecord]:
    """Read one PrivacyPair file.

    Args:
        path: the JSON file.
        image_root: folder that the records' image paths are relative to.

    Raises:
        DataFormatError: naming the file, the record and the field: no JSON, a missing or wrong field, lists of queries
            of different length, an image that does not exist or lies outside the root, two records with one case_id.
    """
    path, root = Path(path), Path(image_root)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataFormatError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, list):
        raise DataFormatError(f"{path}: expected a list of records, found {type(content).__name__}")
    records = [_to_record(entry, f"{path}, record {index}", path.stem, root) for index, entry in enumerate(content)]
    seen: set[str] = set()
    for record in records:
        if record.record_id in seen:
            raise DataFormatError(f"{path}: case_id of '{record.record_id}' occurs twice")
        seen.add(record.record_id)
    return records


def _to_record(entry: Any, place: str, stem: str, root: Path) -> PrivacyRecord:
    try:
        case = _Case.model_validate(entry)
    except ValidationError as error:
        raise DataFormatError(f"{place}: {first_problem(error)}") from error
    if len(case.paraphrase_prompts) != len(case.neighborhood_prompts):
        raise DataFormatError(
            f"{place}: {len(case.paraphrase_prompts)} 'paraphrase_prompts' but {len(case.neighborhood_prompts)} "
            "'neighborhood_prompts'; they are paired one to one"
        )
    rewrite = case.requested_rewrite
    if rewrite.prompt.count("{}") != 1:
        raise DataFormatError(f"{place}: field 'requested_rewrite.prompt' needs exactly one {{}}: '{rewrite.prompt}'")
    sensitive = [rewrite.prompt.replace("{}", rewrite.subject), *case.paraphrase_prompts]
    benign = [case.neighborhood_prompts[0], *case.neighborhood_prompts]
    return PrivacyRecord(
        record_id=f"{stem}/{case.case_id}",
        subject=rewrite.subject,
        image=resolve_inside(root, case.image, place),
        pairs=tuple(
            QueryPair(sensitive=ask, benign=keep, refusal=rewrite.target_new.str_)
            for ask, keep in zip(sensitive, benign, strict=True)
        ),
    )
