"""Answers to queries, and the unedited model's own answers as targets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.pictures import picture_digest
from lightning_neuralgate.data.records import PrivacyRecord, RetentionItem
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.hf.generation import start_and_stop_settings
from lightning_neuralgate.hf.identity import config_checksum, model_checksum, processor_checksum
from lightning_neuralgate.prefix_cache.generate import generate_with_shared_prefix
from lightning_neuralgate.runtime.files import atomic_write, cache_folder

BENIGN_WORDS = 5
"""A benign target is the first 5 words of the unedited model's answer (paper)."""
RETENTION_WORDS = 8


def answer_rows(
    model: Any,
    processor: Any,
    rows: Sequence[QueryRow],
    max_new_tokens: int = 20,
    batch_size: int = 8,
    sampling: Mapping[str, Any] | None = None,
    progress: str | None = None,
    share_prefixes: bool = True,
    until: Callable[[str], bool] | None = None,
) -> list[str]:
    """Answers to any number of rows, in their order, with a progress bar named `progress`.

    With `until`, an answer may end as soon as that is true of what is told of it.

    Rows about one picture are answered together, so that it is looked at once, unless `share_prefixes` is off. In float32 the
    answers are the same; in half precision a close call may go the other way in other company.
    """
    collate = PrivacyPairCollator(processor, "left")
    pictures = {picture: number for number, picture in enumerate(dict.fromkeys(row.image for row in rows))}
    order = sorted(
        range(len(rows)),
        key=lambda index: (share_prefixes and pictures[rows[index].image], len(rows[index].query)),
    )
    answers = [""] * len(rows)
    training = model.training
    model.eval()
    try:
        with tqdm(total=len(rows), desc=progress, disable=progress is None, unit="query") as bar:
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                batch = collate([rows[index] for index in chosen])
                # a name of its own for each row lets none share
                shown = [rows[index].image if share_prefixes else index for index in chosen]
                told = generate_with_shared_prefix(
                    model, collate.tokenizer, batch, shown, max_new_tokens, sampling, until
                )
                for index, answer in zip(chosen, told, strict=True):
                    answers[index] = answer
                bar.update(len(chosen))
    finally:
        model.train(training)
    return answers


def first_words(answer: str, count: int) -> str:
    """The first words of an answer, as they are spaced.

    >>> first_words("The passport is  red. It is small.", 4)
    'The passport is  red.'
    """
    end = 0
    for word in answer.split()[:count]:
        end = answer.index(word, end) + len(word)
    return answer[:end]


def fill_targets(
    records: Sequence[PrivacyRecord],
    retention: Sequence[RetentionItem],
    model: Any,
    processor: Any,
    batch_size: int = 8,
) -> tuple[list[PrivacyRecord], list[RetentionItem]]:
    """Give every benign query and retention question that lacks a target the unedited model's own answer.

    Answers are greedy, kept in the cache under a key of model and questions, and made only where the cache has none.

    Raises:
        DataFormatError: the model has nothing to say to a query.
    """
    benign: dict[Any, QueryRow] = {
        (record.record_id, index): QueryRow(
            pair.benign, "benign", record.image, record.subject, record_id=record.record_id
        )
        for record in records
        for index, pair in enumerate(record.pairs)
        if not pair.benign_target
    }
    kept: dict[Any, QueryRow] = {
        index: QueryRow(item.query, "retention", item.image)
        for index, item in enumerate(retention)
        if item.target is None
    }
    if not benign and not kept:
        return list(records), list(retention)
    rows = [*benign.values(), *kept.values()]
    answers = dict(zip([*benign, *kept], _cached_answers(model, processor, rows, batch_size), strict=True))
    for key, row in {**benign, **kept}.items():
        if not answers[key]:
            raise DataFormatError(
                f"record {row.record_id}: the unedited model has no answer to '{row.query}', so there is "
                "nothing to keep; "
                "remove the query"
            )
    filled = [
        record.model_copy(
            update={
                "pairs": tuple(
                    pair
                    if pair.benign_target
                    else pair.model_copy(
                        update={"benign_target": first_words(answers[record.record_id, index], BENIGN_WORDS)}
                    )
                    for index, pair in enumerate(record.pairs)
                )
            }
        )
        for record in records
    ]
    items = [
        item.model_copy(update={"target": first_words(answers[index], RETENTION_WORDS)}) if index in kept else item
        for index, item in enumerate(retention)
    ]
    return filled, items


def _cached_answers(model: Any, processor: Any, rows: Sequence[QueryRow], batch_size: int) -> list[str]:
    key = hashlib.sha256(f"{model_checksum(model)}{config_checksum(model)}{processor_checksum(processor)}".encode())
    key.update(json.dumps(start_and_stop_settings(model)).encode())
    for row in rows:
        picture = picture_digest(row.image) if row.image else ""
        key.update(json.dumps([row.query, picture]).encode())
    file = cache_folder() / "targets" / f"{key.hexdigest()[:24]}.json"
    if file.is_file():
        return list(json.loads(file.read_text(encoding="utf-8")))
    answers = answer_rows(model, processor, rows, max_new_tokens=24, batch_size=batch_size, progress="targets")
    with atomic_write(file) as draft:
        draft.write_text(json.dumps(answers, ensure_ascii=False, indent=1), encoding="utf-8")
    return answers
