"""Split records into edit and test, and check that nothing leaks from one to the other."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, RecordSplits
from lightning_neuralgate.data.same_picture import PictureIndex
from lightning_neuralgate.errors import DataFormatError, DataLeakError
from lightning_neuralgate.gate.spans import normalize_subject

TEST_SPLITS = ("test", "unseen_attributes", "unseen_subjects")


def split_records(
    records: Sequence[PrivacyRecord],
    unseen: Iterable[str] = (),
    max_edit: int = 10,
    edit_share: float = 1 / 3,
    seed: int = 0,
    unseen_attributes: Iterable[str] = (),
) -> RecordSplits:
    """Split records as in the paper: per subject at most 10 records, and at most a third of them, for editing.

    Query pairs of a test record are removed if an edit record contains one of their queries, or one of their templates where
    attributes are known. A record without remaining pairs is dropped.

    Args:
        records: records of any subjects.
        unseen: subjects to keep out of the edit.
        max_edit: largest number of edit records per subject.
        edit_share: largest share of a subject's records used for editing.
        seed: seed for choosing the edit records.
        unseen_attributes: attributes to keep out of the edit, for every subject. Where a record does not name its queries'
            attributes, a query that contains the words counts. Name both sensitive and benign attributes: pairs with only
            one unseen attribute are dropped. A test record with pairs of both kinds is divided between two splits.

    Raises:
        DataFormatError: a subject has too few records for one edit record, an unseen subject has none, no query pair asks
            for the unseen attributes, no test query is left, or two records have the same id.
    """
    unseen_subjects = {normalize_subject(subject) for subject in unseen}
    attributes = [_normalize(attribute) for attribute in unseen_attributes]
    by_subject: dict[str, list[PrivacyRecord]] = {}
    for record in records:
        by_subject.setdefault(normalize_subject(record.subject), []).append(record)
    if unknown := unseen_subjects - set(by_subject):
        raise DataFormatError(
            f"there are no records of the unseen subjects {sorted(unknown)}; there are {sorted(by_subject)}"
        )
    splits = RecordSplits([], [], [], [], [])
    for subject, group in by_subject.items():
        if subject in unseen_subjects:
            splits.unseen_subjects.extend(group)
            continue
        count = min(max_edit, int(len(group) * edit_share))
        if count < 1:
            raise DataFormatError(
                f"subject '{subject}' has {len(group)} records, too few for an edit share of {edit_share:.2f}"
            )
        shuffled = random.Random(f"{seed}/{subject}").sample(group, len(group))
        splits.edit.extend(_select_pairs(shuffled[:count], attributes, unseen=False))
        splits.test.extend(_select_pairs(shuffled[count:], attributes, unseen=False))
        splits.unseen_attributes.extend(_select_pairs(shuffled[count:], attributes, unseen=True))
    if attributes and not splits.unseen_attributes:
        raise DataFormatError(
            f"no query pair asks for two of the unseen attributes {attributes}; name a sensitive and a benign "
            "attribute that occur in the same pair"
        )
    queries = {_normalize(query) for record in splits.edit for query, _ in record.queries()}
    templates = {template for record in splits.edit for template, _ in _templates(record)}
    for name in TEST_SPLITS:
        split: list[PrivacyRecord] = getattr(splits, name)
        remaining = [rest for record in split if (rest := _remove_pairs(record, queries, templates)) is not None]
        if split and not remaining:
            raise DataFormatError(
                f"no query of {name} is left, because the edit contains all of them or their templates; "
                "add records with other queries"
            )
        split[:] = remaining
    check_no_leakage(splits)
    return splits


def check_no_leakage(splits: RecordSplits) -> None:
    """Check that no test or validation record contains anything that an edit record contains.

    Pictures are compared by what they show, also in another format, size or orientation (`PictureIndex`), queries ignoring
    case and spacing. Templates, i.e. queries without attribute and subject, are compared where a pair names its attributes.
    In addition, a pair in `unseen_attributes` must not ask for an attribute that an edit record of its subject asks for, and
    the subjects in `unseen_subjects` must not be edited.

    Raises:
        DataLeakError: naming the test record, the edit record and what they share.
        DataFormatError: two records of a split have the same id, a picture cannot be read, or a pair in
            `unseen_attributes` does not name its attributes.
    """
    for name, records in splits._asdict().items():
        counts = Counter(record.record_id for record in records)
        if repeated := [record_id for record_id, count in counts.items() if count > 1]:
            raise DataFormatError(f"{name}: several records have the id '{repeated[0]}'; give each its own id")
    edit = _EditIndex(splits.edit)
    for name in (*TEST_SPLITS, "validation"):
        for record in getattr(splits, name):
            place = f"{name} record '{record.record_id}'"
            edit.check(record, place)
            if name == "unseen_attributes":
                edit.check_attributes(record, place)
            if name == "unseen_subjects" and (other := edit.subjects.get(normalize_subject(record.subject))):
                raise DataLeakError(f"{place}: its subject '{record.subject}' was edited in record '{other}'")


class _EditIndex:
    """Ids of the edit records by subject, query, template, attribute and picture."""

    def __init__(self, records: Sequence[PrivacyRecord]) -> None:
        self.ids = {record.record_id for record in records}
        self.subjects = {normalize_subject(record.subject): record.record_id for record in records}
        self.queries = {_normalize(query): record.record_id for record in records for query, _ in record.queries()}
        self.templates = {template: record.record_id for record in records for template, _ in _templates(record)}
        self.attributes: dict[tuple[str, str, str], str] = {}
        """(subject, query, attribute) -> record id, with an empty query where the attribute is known."""
        for record in records:
            for query, attribute in record.queries():
                key = normalize_subject(record.subject), "" if attribute else query, _normalize(attribute)
                self.attributes[key] = record.record_id
        self.pictures = PictureIndex([(record.image, record.record_id) for record in records])

    def check(self, record: PrivacyRecord, place: str) -> None:
        if record.record_id in self.ids:
            raise DataLeakError(f"{place} is also an edit record")
        if other := self.pictures.find(record.image, record.record_id):
            raise DataLeakError(f"{place} has the same picture as edit record '{other}'")
        for query, _ in record.queries():
            if edit_id := self.queries.get(_normalize(query)):
                raise DataLeakError(f"{place} has the query '{query}', which edit record '{edit_id}' has too")
        for template, query in _templates(record):
            if edit_id := self.templates.get(template):
                raise DataLeakError(
                    f"{place} has the query '{query}', built from the template '{template}' of edit record '{edit_id}'"
                )

    def check_attributes(self, record: PrivacyRecord, place: str) -> None:
        subject = normalize_subject(record.subject)
        for pair in record.pairs:
            for attribute in (pair.sensitive_attribute, pair.benign_attribute):
                if not attribute:
                    raise DataFormatError(
                        f"{place}: the query pair of '{pair.sensitive}' needs 'sensitive_attribute' and 'benign_attribute'"
                    )
                for (edit_subject, query, known), edit_id in self.attributes.items():
                    if edit_subject == subject and _asks_for(query, known, _normalize(attribute)):
                        raise DataLeakError(
                            f"{place} asks for the unseen attribute '{attribute}', which edit record '{edit_id}' asks for too"
                        )


def _select_pairs(records: Iterable[PrivacyRecord], attributes: Sequence[str], unseen: bool) -> Iterator[PrivacyRecord]:
    """Keep the pairs in which both queries (`unseen`), or neither, ask for one of the attributes."""
    for record in records:
        pairs = []
        for pair in record.pairs:
            sensitive = _matching_attribute(pair.sensitive, pair.sensitive_attribute, attributes)
            benign = _matching_attribute(pair.benign, pair.benign_attribute, attributes)
            if unseen and sensitive and benign:
                names = {"sensitive_attribute": sensitive, "benign_attribute": benign}
                pairs.append(pair.model_copy(update=names))
            elif not unseen and not sensitive and not benign:
                pairs.append(pair)
        if pairs:
            yield record.model_copy(update={"pairs": tuple(pairs)})


def _matching_attribute(query: str, known: str, attributes: Sequence[str]) -> str:
    found = next((attribute for attribute in attributes if _asks_for(query, known, attribute)), "")
    return known or found if found else ""


def _asks_for(query: str, known: str, attribute: str) -> bool:
    """Compare with the query's attribute if it is known, otherwise search the query's text."""
    if known:
        return _normalize(known) == attribute
    return re.search(rf"(?<!\w){re.escape(attribute)}(?!\w)", _normalize(query)) is not None


def _templates(record: PrivacyRecord) -> Iterator[tuple[str, str]]:
    """Yield (template, query) of each query with a known attribute.

    A word such as "name" can be both attribute and verb of a query, so each occurrence is masked in turn.
    """
    subject = normalize_subject(record.subject)
    for query, attribute in record.queries():
        text, words = _normalize(query), _normalize(attribute)
        if not words:
            continue
        for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text):
            masked = f"{text[: match.start()]}{{attribute}}{text[match.end() :]}"
            yield re.sub(rf"(?<!\w){re.escape(subject)}(?!\w)", "{subject}", masked), query


def _remove_pairs(record: PrivacyRecord, queries: set[str], templates: set[str]) -> PrivacyRecord | None:
    """Remove the pairs with one of the queries or templates; return None if no pair is left."""

    def is_new(pair: QueryPair) -> bool:
        single = record.model_copy(update={"pairs": (pair,)})
        return queries.isdisjoint(_normalize(query) for query, _ in single.queries()) and templates.isdisjoint(
            template for template, _ in _templates(single)
        )

    pairs = tuple(pair for pair in record.pairs if is_new(pair))
    return record.model_copy(update={"pairs": pairs}) if pairs else None


def _normalize(text: str) -> str:
    return normalize_subject(text)  # queries and attributes are compared in the same form as subjects
