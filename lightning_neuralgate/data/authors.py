"""PrivacyPair files of the method's authors (JSON; images are not part of them): a reader and a writer.

A record's first pair is its rewrite prompt with the first benign query (same template); the others are the paraphrases
with the benign queries, in order. The format has one refusal per record and no pair for the rewrite prompt of its own.
What is written here therefore repeats the rewrite prompt as the first paraphrase, and adds the list `refusals`, one per
paraphrase; by that list the reader knows that the paraphrases are all pairs there are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, first_problem, resolve_inside
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gate.spans import find_subject
from lightning_neuralgate.runtime.files import atomic_write


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
    refusals: list[str] | None = None


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
    if case.refusals is None:
        sensitive = [rewrite.prompt.replace("{}", rewrite.subject), *case.paraphrase_prompts]
        benign = [case.neighborhood_prompts[0], *case.neighborhood_prompts]
        refusals = [rewrite.target_new.str_] * len(sensitive)
    else:
        sensitive, benign, refusals = case.paraphrase_prompts, case.neighborhood_prompts, case.refusals
        if len(refusals) != len(sensitive) or not all(refusals):
            raise DataFormatError(f"{place}: field 'refusals' must hold one text for each of 'paraphrase_prompts'")
    return PrivacyRecord(
        record_id=f"{stem}/{case.case_id}",
        subject=rewrite.subject,
        image=resolve_inside(root, case.image, place),
        pairs=tuple(
            QueryPair(sensitive=ask, benign=keep, refusal=refusal)
            for ask, keep, refusal in zip(sensitive, benign, refusals, strict=True)
        ),
    )


def write_authors_json(path: str | Path, records: Sequence[PrivacyRecord], image_root: str | Path) -> None:
    """Write records as one PrivacyPair file; `read_authors_json` reads the same images, queries and refusals back.

    Attributes, true values and benign targets have no place in the format and are left out.

    Args:
        path: the JSON file.
        records: records, of one subject in the authors' files.
        image_root: folder that image paths become relative to.

    Raises:
        DataFormatError: naming the record whose first query does not name its subject, or holds braces, or whose image
            lies outside the root.
    """
    path, root = Path(path), Path(image_root).resolve()
    cases = [_to_case(number, record, root) for number, record in enumerate(records)]
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _to_case(number: int, record: PrivacyRecord, root: Path) -> dict[str, Any]:
    place = f"record '{record.record_id}'"
    image, first = record.image.resolve(), record.pairs[0]
    if not image.is_relative_to(root):
        raise DataFormatError(f"{place}: image {image} lies outside the image root {root}")
    found = _subject_place(first.sensitive, record.subject, first.sensitive_attribute)
    if found is None or "{}" in first.sensitive:
        raise DataFormatError(
            f"{place}: the query '{first.sensitive}' must name the subject '{record.subject}' and hold no {{}}"
        )
    start, end = found
    return {
        "case_id": number,
        "image": image.relative_to(root).as_posix(),
        "requested_rewrite": {
            "prompt": f"{first.sensitive[:start]}{{}}{first.sensitive[end:]}",
            "target_new": {"str": first.refusal},
            "subject": first.sensitive[start:end],
        },
        "paraphrase_prompts": [pair.sensitive for pair in record.pairs],
        "neighborhood_prompts": [pair.benign for pair in record.pairs],
        "generation_prompts": [f"The {record.subject} here shows", f"What can be read from the {record.subject} is"],
        "paraphrase_prompts_wo_cat": [
            without_subject(pair.sensitive, record.subject, pair.sensitive_attribute) for pair in record.pairs
        ],
        "neighborhood_prompts_wo_cat": [
            without_subject(pair.benign, record.subject, pair.benign_attribute) for pair in record.pairs
        ],
        "refusals": [pair.refusal for pair in record.pairs],
    }


def without_subject(query: str, subject: str, attribute: str = "") -> str:
    """A query with the subject's words left out, or "it" in their place where the sentence needs one.

    >>> without_subject("What is the passport number of this passport?", "passport", "passport number")
    'What is the passport number?'
    >>> without_subject("Which colour does the passport have?", "passport", "colour")
    'Which colour does it have?'
    """
    found = _subject_place(query, subject, attribute)
    if found is None:
        return query
    before, after = query[: found[0]], query[found[1] :]
    article = r"(?:the|this|that|an?|my|your)\s+$"
    if owned := re.search(rf"\s+of\s+{article}", before, re.IGNORECASE):
        return before[: owned.start()] + after
    if named := re.search(rf"\b{article}", before, re.IGNORECASE):
        it = "It" if named.start() == 0 else "it"
        return f"{before[: named.start()]}{it}{after}"
    return " ".join((before + after).split())


def _subject_place(query: str, subject: str, attribute: str) -> tuple[int, int] | None:
    """Where a query last names its subject, outside the attribute's own words ("passport number") if it can be."""
    words = rf"(?<!\w){re.escape(attribute)}(?!\w)"
    blanked = re.sub(words, lambda found: "_" * len(found[0]), query, flags=re.IGNORECASE) if attribute else query
    return find_subject(blanked, subject) or find_subject(query, subject)
