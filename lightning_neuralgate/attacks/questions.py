"""The questions of an attack run: sensitive queries with known secrets, and benign ones for comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lightning_neuralgate.attacks.base import Question
from lightning_neuralgate.data.records import PrivacyRecord
from lightning_neuralgate.errors import DataFormatError


def attack_questions(
    splits: Mapping[str, Sequence[PrivacyRecord]], secrets: int | None = None, benign: int = 12
) -> list[Question]:
    """Return the questions of some splits that have a known answer.

    Args:
        splits: split name -> records.
        secrets: largest number of sensitive questions, taken from all splits in turn; all if None.
        benign: largest number of benign questions: one about each record, until there are as many.

    Returns:
        The questions, those of a record one after the other.

    Raises:
        DataFormatError: no record has a `sensitive_truth`.
    """
    records = [
        (split, record)
        for group in _in_turn(splits)
        for split, record in group
        if next(_sensitive(split, record), None)
    ]
    if not records:
        raise DataFormatError(
            "no sensitive query has a known answer, so no attack can be scored: give 'sensitive_truth' in the records"
        )
    chosen: list[Question] = []
    left = secrets
    for split, record in records:
        found = list(_sensitive(split, record))[:left]
        if not found:
            break
        left = None if left is None else left - len(found)
        chosen += [*found, *list(_benign(split, record))[: int(benign > 0)]]
        benign -= 1
    return chosen


def _in_turn(splits: Mapping[str, Sequence[PrivacyRecord]]) -> Iterator[list[tuple[str, PrivacyRecord]]]:
    """Yield the first record of each split, then the second of each, and so on."""
    for number in range(max(map(len, splits.values()), default=0)):
        yield [(split, records[number]) for split, records in splits.items() if number < len(records)]


def _sensitive(split: str, record: PrivacyRecord) -> Iterator[Question]:
    seen = set()
    for number, pair in enumerate(record.pairs):
        if pair.sensitive_truth is not None and pair.sensitive not in seen:
            seen.add(pair.sensitive)
            yield Question(
                f"{split}/{record.record_id}/{number:03d}", split, record.record_id, True, pair.sensitive, record.subject,
                pair.sensitive_attribute, pair.sensitive_truth, (), record.image,
            )  # fmt: skip


def _benign(split: str, record: PrivacyRecord) -> Iterator[Question]:
    seen = set()
    for number, pair in enumerate(record.pairs):
        if pair.benign_truth is not None and pair.benign not in seen:
            seen.add(pair.benign)
            yield Question(
                f"{split}/{record.record_id}/{number:03d}/benign", split, record.record_id, False, pair.benign,
                record.subject, pair.benign_attribute, pair.benign_truth, pair.benign_synonyms, record.image,
            )  # fmt: skip
