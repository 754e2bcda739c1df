"""Edit and test apart: how records are split, and the check that nothing leaks from one to the other."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_neuralgate.data.records import PrivacyRecord, RecordSplits
from lightning_neuralgate.errors import DataFormatError, DataLeakError
from lightning_neuralgate.gate import subject_key


def split_records(
    records: Sequence[PrivacyRecord],
    unseen: Iterable[str] = (),
    max_edit: int = 10,
    edit_share: float = 1 / 3,
    seed: int = 0,
) -> RecordSplits:
    """Split records as the paper does: per subject at most 10 records, and at most a third, for editing.

    Query pairs of a test record that an edit record also holds are taken out of it; a record left without pairs is
    dropped.

    Args:
        records: records of any subjects.
        unseen: subjects kept out of the edit altogether.
        max_edit: at most so many records of a subject are used for editing.
        edit_share: and at most this share of them.
        seed: seeds which ones.

    Raises:
        DataFormatError: a subject has too few records to leave one for editing, an unseen subject has none, or two
            records have the same id.
    """
    kept_out = {subject_key(subject) for subject in unseen}
    by_subject: dict[str, list[PrivacyRecord]] = {}
    for record in records:
        by_subject.setdefault(subject_key(record.subject), []).append(record)
    unknown = kept_out - set(by_subject)
    if unknown:
        raise DataFormatError(
            f"there are no records of the unseen subjects {sorted(unknown)}; there are {sorted(by_subject)}"
        )
    splits = RecordSplits([], [], [])
    for subject, group in by_subject.items():
        if subject in kept_out:
            splits.unseen_subjects.extend(group)
            continue
        count = min(max_edit, int(len(group) * edit_share))
        if count < 1:
            raise DataFormatError(f"subject '{subject}' has {len(group)} records; a share of {edit_share:.2f} is none")
        shuffled = random.Random(f"{seed}/{subject}").sample(group, len(group))
        splits.edit.extend(shuffled[:count])
        splits.test.extend(shuffled[count:])
    used = {_query_key(query) for record in splits.edit for query in _queries(record)}
    for split in (splits.test, splits.unseen_subjects):
        split[:] = [fresh for record in split if (fresh := _without(record, used)) is not None]
    check_no_leakage(splits)
    return splits


def check_no_leakage(splits: RecordSplits) -> None:
    """Make sure that no test record, picture, query text or unseen subject was used in the edit.

    Pictures are compared by content, queries without regard to case and spacing.

    Raises:
        DataLeakError: naming the test record and what it shares with which edit record.
        DataFormatError: two records of a split have the same id.
    """
    for name, records in splits._asdict().items():
        counted = Counter(record.record_id for record in records)
        repeated = [record_id for record_id, count in counted.items() if count > 1]
        if repeated:
            raise DataFormatError(
                f"{name}: several records have the id '{repeated[0]}'; name their files or cases apart"
            )
    edit_ids = {record.record_id for record in splits.edit}
    edit_images = {_digest(record.image): record.record_id for record in splits.edit}
    edit_queries = {_query_key(query): record.record_id for record in splits.edit for query in _queries(record)}
    edit_subjects = {subject_key(record.subject): record.record_id for record in splits.edit}
    for name in ("test", "unseen_subjects"):
        for record in getattr(splits, name):
            place = f"{name} record '{record.record_id}'"
            if record.record_id in edit_ids:
                raise DataLeakError(f"{place} is an edit record, too")
            image = _digest(record.image)
            if image in edit_images:
                raise DataLeakError(f"{place} shows the same picture as edit record '{edit_images[image]}'")
            for query in _queries(record):
                if _query_key(query) in edit_queries:
                    other = edit_queries[_query_key(query)]
                    raise DataLeakError(f"{place} asks '{query}', and so does edit record '{other}'")
            if name == "unseen_subjects" and subject_key(record.subject) in edit_subjects:
                other = edit_subjects[subject_key(record.subject)]
                raise DataLeakError(f"{place}: its subject '{record.subject}' was edited in record '{other}'")


def _queries(record: PrivacyRecord) -> list[str]:
    return [query for pair in record.pairs for query in (pair.sensitive, pair.benign)]


def _query_key(query: str) -> str:
    return " ".join(query.casefold().split())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without(record: PrivacyRecord, used: set[str]) -> PrivacyRecord | None:
    pairs = tuple(
        pair for pair in record.pairs if _query_key(pair.sensitive) not in used and _query_key(pair.benign) not in used
    )
    return record.model_copy(update={"pairs": pairs}) if pairs else None
