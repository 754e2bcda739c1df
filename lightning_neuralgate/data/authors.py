"""Read and write PrivacyPair in the authors' JSON format (images are separate files).

In the authors' files, a record's first pair is the rewrite prompt with the first benign query (same template), followed by
the paraphrases with the benign queries in order. The format has one refusal per record, and no benign query of its own for
the rewrite prompt. Files written here repeat the rewrite prompt as the first paraphrase and add the list `refusals`, one per
paraphrase; if that list is present, the reader takes the paraphrases as the full list of pairs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, resolve_inside, validation_message
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gate.spans import find_subject
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.parsing import read_json


class _Target(BaseModel):
    str_: str = Field(alias="str", min_length=1)


class _Rewrite(BaseModel):
    prompt: str = Field(min_length=1)
    target_new: _Target
    subject: str = Field(min_length=1)


class _Case(BaseModel):
    """One entry of a file; fields that are not needed here (generation prompts, ...) are ignored."""

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
        image_root: folder that image paths are relative to.

    Raises:
        DataFormatError: naming file, record and field: invalid JSON, a missing or wrong field, query lists of different
            lengths, an image that is missing or outside the root, or a duplicate case_id.
    """
    path, root = Path(path), Path(image_root)
    content = read_json(path)
    if not isinstance(content, list):
        raise DataFormatError(f"{path}: expected a list of records, found {type(content).__name__}")
    records = [_to_record(entry, f"{path}, record {index}", path.stem, root) for index, entry in enumerate(content)]
    seen: set[str] = set()
    for record in records:
        if record.record_id in seen:
            raise DataFormatError(f"{path}: the case_id of '{record.record_id}' occurs twice; give each record its own")
        seen.add(record.record_id)
    return records


def _to_record(entry: Any, place: str, stem: str, root: Path) -> PrivacyRecord:
    try:
        case = _Case.model_validate(entry)
    except ValidationError as error:
        raise DataFormatError(f"{place}: {validation_message(error)}") from error
    if len(case.paraphrase_prompts) != len(case.neighborhood_prompts):
        raise DataFormatError(
            f"{place}: {len(case.paraphrase_prompts)} 'paraphrase_prompts' but {len(case.neighborhood_prompts)} "
            "'neighborhood_prompts'; both lists must have the same length"
        )
    rewrite = case.requested_rewrite
    if rewrite.prompt.count("{}") != 1:
        raise DataFormatError(
            f"{place}: field 'requested_rewrite.prompt' needs exactly one {{}} for the subject: '{rewrite.prompt}'"
        )
    if case.refusals is None:
        sensitive = [rewrite.prompt.replace("{}", rewrite.subject), *case.paraphrase_prompts]
        benign = [case.neighborhood_prompts[0], *case.neighborhood_prompts]
        refusals = [rewrite.target_new.str_] * len(sensitive)
    else:
        sensitive, benign, refusals = case.paraphrase_prompts, case.neighborhood_prompts, case.refusals
        if len(refusals) != len(sensitive) or not all(refusals):
            raise DataFormatError(f"{place}: field 'refusals' must contain one text for each of 'paraphrase_prompts'")
    image = resolve_inside(root, case.image, place)
    try:
        return PrivacyRecord(
            record_id=f"{stem}/{case.case_id}",
            subject=rewrite.subject,
            image=image,
            pairs=tuple(
                QueryPair(sensitive=sensitive_query, benign=benign_query, refusal=refusal)
                for sensitive_query, benign_query, refusal in zip(sensitive, benign, refusals, strict=True)
            ),
        )
    except ValidationError as error:  # an empty query
        raise DataFormatError(f"{place}: {validation_message(error)}") from error


def write_authors_json(path: str | Path, records: Sequence[PrivacyRecord], image_root: str | Path) -> None:
    """Write records as one PrivacyPair file; `read_authors_json` restores their images, queries and refusals.

    The format has no fields for attributes, true values and benign targets, so these are dropped.

    Args:
        path: the JSON file.
        records: the records; the authors' files contain one subject each.
        image_root: folder that image paths are made relative to.

    Raises:
        DataFormatError: naming the record whose first query lacks the subject or contains braces, or whose image is
            outside the root.
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
    span = _find_subject_outside(first.sensitive, record.subject, first.sensitive_attribute)
    if span is None or "{}" in first.sensitive:
        raise DataFormatError(
            f"{place}: the query '{first.sensitive}' must name the subject '{record.subject}' and contain no {{}}"
        )
    start, end = span
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
    """Remove the subject from a query, or replace it with "it" where the sentence needs a pronoun.

    >>> without_subject("What is the passport number of this passport?", "passport", "passport number")
    'What is the passport number?'
    >>> without_subject("Which colour does the passport have?", "passport", "colour")
    'Which colour does it have?'
    """
    span = _find_subject_outside(query, subject, attribute)
    if span is None:
        return query
    before, after = query[: span[0]], query[span[1] :]
    article = r"(?:the|this|that|an?|my|your)\s+$"
    if of_subject := re.search(rf"(?<!\s)\s+of\s+{article}", before, re.IGNORECASE):
        return before[: of_subject.start()] + after
    if determiner := re.search(rf"\b{article}", before, re.IGNORECASE):
        pronoun = "It" if determiner.start() == 0 else "it"
        return f"{before[: determiner.start()]}{pronoun}{after}"
    return " ".join((before + after).split())


def _find_subject_outside(query: str, subject: str, attribute: str) -> tuple[int, int] | None:
    """Find the subject's last mention, preferably outside the attribute's own words ("passport number")."""
    pattern = rf"(?<!\w){re.escape(attribute)}(?!\w)"
    masked = re.sub(pattern, lambda match: "_" * len(match[0]), query, flags=re.IGNORECASE) if attribute else query
    return find_subject(masked, subject) or find_subject(query, subject)
