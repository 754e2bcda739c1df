"""Token spans of subjects: find a subject's words in a text and map them to token positions.

Positions are found by decoding prefixes of the token ids, so they need no offsets from the tokenizer, and still hold after a
processor has applied its chat template and expanded the image tokens. Matching ignores case, spacing and plural
("Receipts" finds "receipt").
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_neuralgate.errors import SubjectNotFoundError

_REPLACEMENT = "\ufffd"


class SupportsDecode(Protocol):
    """The part of a tokenizer that this module needs."""

    def decode(self, token_ids: Sequence[int], /, **kwargs: object) -> str: ...


class TokenSpan(NamedTuple):
    """First and last token of a subject, both inclusive."""

    first: int
    last: int


def normalize_subject(subject: str) -> str:
    """Return the canonical form of a subject's name, by which gates and batches look it up.

    >>> normalize_subject(" Student  ID")
    'student id'
    """
    return " ".join(subject.casefold().split())


def find_subject(query: str, subject: str) -> tuple[int, int] | None:
    """Return the character range of the last occurrence of the subject in a query, or None.

    >>> find_subject("Which number do the Receipts show?", "receipt")
    (20, 28)
    """
    if not subject.strip():
        return None
    matches = list(_subject_pattern(subject).finditer(query))
    return matches[-1].span() if matches else None


@lru_cache(maxsize=256)
def _subject_pattern(subject: str) -> re.Pattern[str]:
    *words, last = subject.split()
    stems = {last}
    lower = last.lower()
    if lower.endswith("ies"):
        stems |= {last[:-3] + "y"}
    elif lower.endswith("es"):
        stems |= {last[:-2], last[:-1]}
    elif lower.endswith("s") and not lower.endswith("ss"):
        stems |= {last[:-1]}
    forms = {form for stem in stems for form in (stem, stem + "s", stem + "es", re.sub("[yY]$", "ies", stem))}
    final = "|".join(re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form)))
    return re.compile(r"(?<!\w)" + r"[\s_-]+".join([*map(re.escape, words), f"(?:{final})"]) + r"(?!\w)", re.IGNORECASE)


def subject_token_span(
    token_ids: Sequence[int], tokenizer: SupportsDecode, query: str, subject: str, record: str = "?"
) -> TokenSpan:
    """Return the tokens of the subject's last occurrence in the query, within the tokens of the full prompt.

    Args:
        token_ids: one row without padding, up to the end of the prompt; it may contain image tokens.
        tokenizer: the tokenizer, used to decode the ids.
        query: the query as it appears in the prompt; text before and after it is not searched.
        subject: the subject's name.
        record: id of the record, for the error message.

    Raises:
        SubjectNotFoundError: the subject is not in the query, or the query is not in the prompt.
    """
    within = find_subject(query, subject)
    if within is None:
        raise SubjectNotFoundError(
            f"record {record}: the subject '{subject}' does not occur in the query '{query}'; "
            "name the subject in the query, or correct the record's 'subject'"
        )

    start = _query_start(_decode(token_ids, tokenizer), query)
    if start is None:
        raise SubjectNotFoundError(
            f"record {record}: the query '{query}' cannot be found in the decoded prompt; "
            "does the chat template or the tokenizer rewrite or truncate it?"
        )
    return _token_span(token_ids, tokenizer, start + within[0], start + within[1])


def last_named_subject(
    token_ids: Sequence[int], tokenizer: SupportsDecode, subjects: Sequence[str]
) -> tuple[str, TokenSpan] | None:
    """Return the subject that a row names last and the tokens of that occurrence; None if it names none.

    If two subjects end at the same character, the longer one wins: "student ID", not "ID".

    Args:
        token_ids: one row; it may contain image and padding tokens.
        tokenizer: the tokenizer, used to decode the ids.
        subjects: the subjects to look for.
    """
    text = _decode(token_ids, tokenizer)
    matches = [
        (span[1], -span[0], subject) for subject in subjects if (span := find_subject(text, subject)) is not None
    ]
    if not matches:
        return None
    end, negative_start, subject = max(matches)
    return subject, _token_span(token_ids, tokenizer, -negative_start, end)


def _decode(token_ids: Sequence[int], tokenizer: SupportsDecode) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _token_span(token_ids: Sequence[int], tokenizer: SupportsDecode, start: int, end: int) -> TokenSpan:
    """Map a character range of the decoded text to tokens."""
    return TokenSpan(_token_at(token_ids, tokenizer, start), _token_at(token_ids, tokenizer, end - 1))


def _token_at(token_ids: Sequence[int], tokenizer: SupportsDecode, position: int) -> int:
    """Return the index of the first token at which the decoded prefix contains a character of the decoded text."""

    def prefix_length(count: int) -> tuple[int, bool]:
        """Return the length of a decoded prefix, and whether it ends between two characters."""
        text = _decode(token_ids[:count], tokenizer)
        complete = text.rstrip(_REPLACEMENT)
        # LLaMA decodes a run of byte tokens to one replacement character per byte as long as its last one is cut off
        return len(complete) + (complete != text), complete == text

    count = bisect_left(range(len(token_ids) + 1), True, key=lambda count: prefix_length(count)[0] > position)
    for shorter in reversed(range(count)):  # lengths are not monotone within such a run, so search it to its start
        length, is_complete = prefix_length(shorter)
        if length > position:
            count = shorter
        elif is_complete:
            break
    return count - 1


def _query_start(text: str, query: str) -> int | None:
    """Find the query in the decoded prompt, ignoring case only if there is no exact match."""
    start = text.rfind(query)
    if start < 0:
        # not by lower(), which may change the length of the text; the lookahead finds overlapping matches, too
        matches = re.finditer(f"(?={re.escape(query)})", text, re.IGNORECASE)
        start = max((match.start() for match in matches), default=-1)
    return None if start < 0 else start


def subject_mask(spans: Sequence[TokenSpan | None], lengths: Sequence[int], width: int, padding_side: str) -> Tensor:
    """Return a boolean mask, (B, T), that is True at every subject token of a padded batch.

    Args:
        spans: for each row the subject's tokens, counted from the row's first token that is not padding; None for a row
            without a subject.
        lengths: number of tokens in each row without padding.
        width: T, the padded length.
        padding_side: "left" or "right".
    """
    mask = torch.zeros(len(spans), width, dtype=torch.bool)
    for row, (span, length) in enumerate(zip(spans, lengths, strict=True)):
        if span is not None:
            offset = width - length if padding_side == "left" else 0
            mask[row, offset + span.first : offset + span.last + 1] = True
    return mask


def last_position(mask: Tensor) -> Tensor:
    """Keep only the last True of each row of a mask. (B, T) -> (B, T)."""
    return mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
