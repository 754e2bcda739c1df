"""Edit and test apart: how records are split, and the check that nothing leaks from one to the other."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, RecordSplits
from lightning_neuralgate.errors import DataFormatError, DataLeakError
from lightning_neuralgate.gate.spans import subject_key

TEST_SPLITS = ("test", "unseen_attributes", "unseen_subjects")


def split_records(
    records: Sequence[PrivacyRecord],
    unseen: Iterable[str] = (),
    max_edit: int = 10,
    edit_share: float = 1 / 3,
    seed: int = 0,
    unseen_attributes: Iterable[str] = (),
) -> RecordSplits:
    """Split records as the paper does: per subject at most 10 records, and at most a third, for editing.

    Query pairs of a test record whose query, or whose template where attributes are known, an edit record also holds
    are taken out of it; a record left without pairs is dropped.

    Args:
        records: records of any subjects.
        unseen: subjects kept out of the edit altogether.
        max_edit: at most so many records of a subject are used for editing.
        edit_share: and at most this share of them.
        seed: seeds which ones.
        unseen_attributes: attributes kept out of the edit, of every subject. Where a record does not say what it asks
            for, a query that holds the words asks for it. Pairs with one such attribute and one other are dropped, so
            name sensitive and benign ones. Test records give their pairs of both kinds to two splits.

    Raises:
        DataFormatError: a subject has too few records to leave one for editing, an unseen subject has none, nothing
            asks for the unseen attributes, no test query is left, or two records have the same id.
    """
    kept_out = {subject_key(subject) for subject in unseen}
    attributes = [_key(attribute) for attribute in unseen_attributes]
    by_subject: dict[str, list[PrivacyRecord]] = {}
    for record in records:
        by_subject.setdefault(subject_key(record.subject), []).append(record)
    unknown = kept_out - set(by_subject)
    if unknown:
        raise DataFormatError(
            f"there are no records of the unseen subjects {sorted(unknown)}; there are {sorted(by_subject)}"
        )
    splits = RecordSplits([], [], [], [])
    for subject, group in by_subject.items():
        if subject in kept_out:
            splits.unseen_subjects.extend(group)
            continue
        count = min(max_edit, int(len(group) * edit_share))
        if count < 1:
            raise DataFormatError(f"subject '{subject}' has {len(group)} records; a share of {edit_share:.2f} is none")
        shuffled = random.Random(f"{seed}/{subject}").sample(group, len(group))
        splits.edit.extend(_asking(shuffled[:count], attributes, unseen=False))
        splits.test.extend(_asking(shuffled[count:], attributes, unseen=False))
        splits.unseen_attributes.extend(_asking(shuffled[count:], attributes, unseen=True))
    if attributes and not splits.unseen_attributes:
        raise DataFormatError(
            f"no query pair asks for two of the unseen attributes {attributes}; name a sensitive and a benign one "
            "that are asked for together"
        )
    queries = {_key(query) for record in splits.edit for query in _queries(record)}
    templates = {template for record in splits.edit for template, _ in _templates(record)}
    for name in TEST_SPLITS:
        split: list[PrivacyRecord] = getattr(splits, name)
        fresh = [kept for one in split if (kept := _without(one, queries, templates)) is not None]
        if split and not fresh:
            raise DataFormatError(f"no query of {name} is left: the edit asks all of them, or in the same words")
        split[:] = fresh
    check_no_leakage(splits)
    return splits


def check_no_leakage(splits: RecordSplits) -> None:
    """Make sure that nothing that an edit record shows or asks stands in a test record.

    Pictures are compared by their pixels; queries without regard to case and spacing; templates, which are queries
    without their attribute and subject, where a pair says what it asks for. A pair of `unseen_attributes` must ask for
    what no edit record of its subject asks for, a record of `unseen_subjects` must be of a subject that was not edited.

    Raises:
        DataLeakError: naming the test record and what it shares with which edit record.
        DataFormatError: two records of a split have the same id, a picture cannot be read, or a pair of
            `unseen_attributes` does not say what it asks for.
    """
    for name, records in splits._asdict().items():
        counted = Counter(record.record_id for record in records)
        repeated = [record_id for record_id, count in counted.items() if count > 1]
        if repeated:
            raise DataFormatError(
                f"{name}: several records have the id '{repeated[0]}'; name their files or cases apart"
            )
    edit = _EditContent(splits.edit)
    for name in TEST_SPLITS:
        for record in getattr(splits, name):
            place = f"{name} record '{record.record_id}'"
            edit.check(record, place)
            if name == "unseen_attributes":
                edit.check_attributes(record, place)
            if name == "unseen_subjects" and (other := edit.subjects.get(subject_key(record.subject))):
                raise DataLeakError(f"{place}: its subject '{record.subject}' was edited in record '{other}'")


class _EditContent:
    """What the edit saw, each thing with the id of a record that shows it."""

    def __init__(self, records: Sequence[PrivacyRecord]) -> None:
        self.ids = {record.record_id for record in records}
        self.subjects = {subject_key(record.subject): record.record_id for record in records}
        self.queries = {_key(query): record.record_id for record in records for query in _queries(record)}
        self.templates = {mask: record.record_id for record in records for mask, _ in _templates(record)}
        self.questions: dict[tuple[str, str, str], str] = {}
        """(subject, query, attribute) -> record; only one of the two is there, the attribute where it is known."""
        for record in records:
            for query, known in _questions(record):
                self.questions[subject_key(record.subject), "" if known else query, _key(known)] = record.record_id
        self.by_size: dict[tuple[int, int], list[PrivacyRecord]] = {}
        for record in records:
            self.by_size.setdefault(_size(record.image), []).append(record)

    def check(self, record: PrivacyRecord, place: str) -> None:
        if record.record_id in self.ids:
            raise DataLeakError(f"{place} is an edit record, too")
        for other in self.by_size.get(_size(record.image), ()):
            if _pixels(record.image) == _pixels(other.image):
                raise DataLeakError(f"{place} shows the same picture as edit record '{other.record_id}'")
        for query in _queries(record):
            if _key(query) in self.queries:
                raise DataLeakError(f"{place} asks '{query}', and so does edit record '{self.queries[_key(query)]}'")
        for template, query in _templates(record):
            if template in self.templates:
                raise DataLeakError(
                    f"{place} asks '{query}', in the template '{template}' of edit record '{self.templates[template]}'"
                )

    def check_attributes(self, record: PrivacyRecord, place: str) -> None:
        subject = subject_key(record.subject)
        for pair in record.pairs:
            for attribute in (pair.sensitive_attribute, pair.benign_attribute):
                if not attribute:
                    raise DataFormatError(f"{place}: a query pair does not say what it asks for: '{pair.sensitive}'")
                for (asked_subject, query, known), other in self.questions.items():
                    if asked_subject == subject and _asks(query, known, _key(attribute)):
                        raise DataLeakError(
                            f"{place} asks for the unseen attribute '{attribute}', and so does edit record '{other}'"
                        )


def _asking(records: Iterable[PrivacyRecord], attributes: Sequence[str], unseen: bool) -> Iterator[PrivacyRecord]:
    """The records with those of their pairs of which both queries (`unseen`), or none, ask for the attributes."""
    for record in records:
        pairs = []
        for pair in record.pairs:
            sensitive = _first_asked(pair.sensitive, pair.sensitive_attribute, attributes)
            benign = _first_asked(pair.benign, pair.benign_attribute, attributes)
            if unseen and sensitive and benign:
                named = {"sensitive_attribute": sensitive, "benign_attribute": benign}
                pairs.append(pair.model_copy(update=named))
            elif not unseen and not sensitive and not benign:
                pairs.append(pair)
        if pairs:
            yield record.model_copy(update={"pairs": tuple(pairs)})


def _first_asked(query: str, known: str, attributes: Sequence[str]) -> str:
    found = next((attribute for attribute in attributes if _asks(query, known, attribute)), "")
    return known or found if found else ""


def _asks(query: str, known: str, attribute: str) -> bool:
    if known:
        return _key(known) == attribute
    return re.search(rf"(?<!\w){re.escape(attribute)}(?!\w)", _key(query)) is not None


def _questions(record: PrivacyRecord) -> Iterator[tuple[str, str]]:
    """All queries with what they ask for, where known."""
    for pair in record.pairs:
        yield pair.sensitive, pair.sensitive_attribute
        yield pair.benign, pair.benign_attribute


def _queries(record: PrivacyRecord) -> list[str]:
    return [query for query, _ in _questions(record)]


def _templates(record: PrivacyRecord) -> Iterator[tuple[str, str]]:
    """Every query that says what it asks for, without attribute and subject, and as it is.

    A word such as "name" can be attribute and verb of one query, so each of its places is masked in turn.
    """
    subject = subject_key(record.subject)
    for query, attribute in _questions(record):
        text, words = _key(query), _key(attribute)
        if not words:
            continue
        for found in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text):
            masked = f"{text[: found.start()]}{{attribute}}{text[found.end() :]}"
            yield re.sub(rf"(?<!\w){re.escape(subject)}(?!\w)", "{subject}", masked), query


def _without(record: PrivacyRecord, queries: set[str], templates: set[str]) -> PrivacyRecord | None:
    def is_fresh(pair: QueryPair) -> bool:
        alone = record.model_copy(update={"pairs": (pair,)})
        return not any(_key(query) in queries for query in _queries(alone)) and not any(
            template in templates for template, _ in _templates(alone)
        )

    pairs = tuple(pair for pair in record.pairs if is_fresh(pair))
    return record.model_copy(update={"pairs": pairs}) if pairs else None


def _key(text: str) -> str:
    return " ".join(text.casefold().split())


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError) as error:
        raise DataFormatError(f"the picture {path} cannot be read: {error}") from error


def _pixels(path: Path) -> str:
    return _pixels_of(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=65536)
def _pixels_of(path: Path, changed: int) -> str:
    try:
        with Image.open(path) as image:
            return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
    except OSError as error:
        raise DataFormatError(f"the picture {path} cannot be read: {error}") from error
