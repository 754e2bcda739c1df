"""Generate answers to prompts, and training targets from the unedited model's answers."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.image_files import picture_digest
from lightning_neuralgate.data.records import PrivacyRecord, RetentionItem
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.hf.generation import start_and_stop_settings
from lightning_neuralgate.hf.identity import config_checksum, model_checksum, processor_checksum
from lightning_neuralgate.prefix_cache.generate import generate_with_shared_prefix
from lightning_neuralgate.runtime.files import atomic_write, cache_folder

BENIGN_WORDS = 5
"""Length of a benign target: the first 5 words of the unedited model's answer, as in the paper."""
RETENTION_WORDS = 8
"""Length of a retention target, in words of the unedited model's answer."""


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
    """Generate an answer to each prompt.

    Prompts about the same picture are answered together, and their common prefix is computed once. This
    changes their logits by floating-point rounding only, which in half precision may decide a near tie between two tokens.

    Args:
        model: a Hugging Face model with `generate`.
        processor: the model's processor.
        rows: the prompts.
        max_new_tokens: upper bound of an answer's length.
        batch_size: prompts per batch.
        sampling: arguments of `generate`; greedy by default.
        progress: description of the progress bar; None for no bar.
        share_prefixes: False computes every prompt on its own.
        until: predicate of an answer's text so far; once it is true, generation of that answer may stop.

    Returns:
        The answers, in the order of `rows`.
    """
    collate = PrivacyPairCollator(processor, "left")
    pictures = dict.fromkeys((row.image for row in rows) if share_prefixes else ())
    numbers = {picture: number for number, picture in enumerate(pictures)}
    order = sorted(range(len(rows)), key=lambda index: (numbers.get(rows[index].image, 0), len(rows[index].query)))
    answers = [""] * len(rows)
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=len(rows), desc=progress, disable=progress is None, unit="query") as bar:
            for start in range(0, len(order), batch_size):
                indices = order[start : start + batch_size]
                batch = collate([rows[index] for index in indices])
                # distinct group keys turn prefix sharing off
                groups = [rows[index].image if share_prefixes else index for index in indices]
                generated = generate_with_shared_prefix(
                    model, collate.tokenizer, batch, groups, max_new_tokens, sampling, until
                )
                for index, answer in zip(indices, generated, strict=True):
                    answers[index] = answer
                bar.update(len(indices))
    finally:
        model.train(was_training)
    return answers


def first_words(answer: str, count: int) -> str:
    """Return the first words of an answer, with their original spacing.

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
    """Fill in missing benign and retention targets with the unedited model's answers.

    Answers are greedy. They are cached on disk under a key of model and questions, and only generated if missing there.

    Args:
        records: edit records; pairs that have a benign target keep it.
        retention: retention items; items that have a target keep it.
        model: the unedited model.
        processor: the model's processor.
        batch_size: prompts per batch.

    Returns:
        Copies of `records` and `retention` in which every target is set.

    Raises:
        DataFormatError: the model's answer to a query is empty.
    """
    rows = [
        QueryRow(pair.benign, "benign", record.image, record.subject, record_id=record.record_id)
        for record in records
        for pair in record.pairs
        if not pair.benign_target
    ]
    benign_count = len(rows)
    rows += [
        QueryRow(item.query, "retention", item.image, earlier=item.earlier) for item in retention if item.target is None
    ]
    if not rows:
        return list(records), list(retention)
    answers = _cached_answers(model, processor, rows, batch_size)
    for row, answer in zip(rows, answers, strict=True):
        if not answer:
            place = "retention question" if row.role == "retention" else f"record {row.record_id}"
            raise DataFormatError(
                f"{place}: the unedited model's answer to '{row.query}' is empty, so there is nothing to preserve; remove "
                "the query"
            )
    # in the order of `rows`
    benign_targets = iter(first_words(answer, BENIGN_WORDS) for answer in answers[:benign_count])
    retention_targets = iter(first_words(answer, RETENTION_WORDS) for answer in answers[benign_count:])
    filled = []
    for record in records:
        pairs = tuple(
            pair if pair.benign_target else pair.model_copy(update={"benign_target": next(benign_targets)})
            for pair in record.pairs
        )
        filled.append(record.model_copy(update={"pairs": pairs}))
    items = [
        item.model_copy(update={"target": next(retention_targets)}) if item.target is None else item
        for item in retention
    ]
    return filled, items


def _cached_answers(model: Any, processor: Any, rows: Sequence[QueryRow], batch_size: int) -> list[str]:
    key = hashlib.sha256(f"{model_checksum(model)}{config_checksum(model)}{processor_checksum(processor)}".encode())
    key.update(json.dumps(start_and_stop_settings(model)).encode())
    for row in rows:
        picture = picture_digest(row.image) if row.image else ""
        key.update(json.dumps([row.query, picture, *([row.earlier] if row.earlier else [])]).encode())
    file = cache_folder() / "targets" / f"{key.hexdigest()[:24]}.json"
    if (stored := _read_answers(file, len(rows))) is not None:
        return stored
    answers = answer_rows(model, processor, rows, max_new_tokens=24, batch_size=batch_size, progress="targets")
    with atomic_write(file) as draft:
        content = {"checksum": _checksum(answers), "answers": answers}
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return answers


def _read_answers(file: Path, count: int) -> list[str] | None:
    """Return the answers in a cache file; None if there are none, or not as they were written."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        answers = content["answers"]
        if content["checksum"] == _checksum(answers) and len(answers) == count:
            return [str(answer) for answer in answers]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    warnings.warn(f"{file} is damaged, so its answers are generated again", stacklevel=2)
    return None


def _checksum(answers: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(answers).encode()).hexdigest()
