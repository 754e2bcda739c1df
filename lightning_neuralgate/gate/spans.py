"""Token spans of subjects: find a subject's words in a text and map them to token positions.

Positions are found by decoding prefixes of the token ids, so they need no offsets from the tokenizer, and still hold after a
processor has applied its chat template and expanded the image tokens. Matching ignores case, plural ("Receipts" finds
"receipt"), spacing and hyphens, and the Unicode form in which a text is written (see `fold`). A subject in a script that
separates words by spaces and has two cases is found as a whole word; in others (Chinese, Thai, Arabic) also inside a word.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_neuralgate.errors import DataFormatError, SubjectNotFoundError
from lightning_neuralgate.runtime.text import FoldedText, fold

_REPLACEMENT = "\ufffd"
_SEPARATOR = r"[\s_-]+"
LONGEST_SUBJECT = 256
"""Maximum length of a subject, which bounds the time of a search."""


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
    >>> normalize_subject("Driver\u2019s licence") == normalize_subject("driver's licence")
    True
    """
    return " ".join(fold(subject).text.split())


def find_subject(query: str, subject: str) -> tuple[int, int] | None:
    """Return the character range of the last occurrence of the subject in a query, or None.

    The time is linear in the length of the query.

    Raises:
        DataFormatError: the subject is longer than `LONGEST_SUBJECT`.

    >>> find_subject("Which number do the Receipts show?", "receipt")
    (20, 28)
    """
    folded = fold(query)
    span = _last_match(folded, subject)
    return None if span is None else folded.source_span(*span)


def _last_match(query: FoldedText, subject: str) -> tuple[int, int] | None:
    """Return the range of the folded query with the last occurrence of a subject, or None."""
    if len(subject) > LONGEST_SUBJECT:
        raise DataFormatError(
            f"the subject '{subject[:40]}...' has {len(subject)} characters; name it in at most {LONGEST_SUBJECT}"
        )
    pattern = _subject_pattern(subject)
    last = None
    for start, stop in () if pattern is None else _matches(pattern, query.text):
        if not _is_inside_word(query.text, start) and not _is_inside_word(query.text, stop):
            last = start, stop
    return last


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """Yield the ranges of all matches, also of overlapping ones."""
    start = 0
    while match := pattern.search(text, start):
        yield match.span()
        start = match.start() + 1


def _is_inside_word(text: str, position: int) -> bool:
    """Return whether a word continues across a position.

    Scripts without case are written without spaces (Chinese, Thai), or attach articles and particles (Arabic, Korean).
    """
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    if unicodedata.category(after).startswith("M"):  # it belongs to the letter before
        return True
    return all(character.islower() or character.isdecimal() for character in (before, after))


@lru_cache(maxsize=256)
def _subject_pattern(subject: str) -> re.Pattern[str] | None:
    """Return a pattern for the words of a subject, or None if it has none.

    Words hold no separators, so a run of separators can be matched in one way only, and matching is linear.
    """
    words = re.split(_SEPARATOR, fold(subject).text.strip(" \t\r\n_-"))
    words = [word for word in words if word]
    if not words:
        return None
    *words, last = words
    stems = {last}
    if last.endswith("ies"):
        stems |= {last[:-3] + "y"}
    elif last.endswith("es"):
        stems |= {last[:-2], last[:-1]}
    elif last.endswith("s") and not last.endswith("ss"):
        stems |= {last[:-1]}
    forms = {form for stem in stems if stem for form in (stem, stem + "s", stem + "es", re.sub("y$", "ies", stem))}
    final = "|".join(re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form)))
    return re.compile(_SEPARATOR.join([*map(re.escape, words), f"(?:{final})"]))


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
    folded_query = fold(query)
    within = _last_match(folded_query, subject)
    if within is None:
        raise SubjectNotFoundError(
            f"record {record}: the subject '{subject}' does not occur in the query '{query}'; "
            "name the subject in the query, or correct the record's 'subject'"
        )

    text = _decode(token_ids, tokenizer)
    start = text.rfind(query)
    if start >= 0:
        first, end = folded_query.source_span(*within)
        return _token_span(token_ids, tokenizer, start + first, start + end)
    # the tokenizer may change case or Unicode form
    folded_text = fold(text)
    start = folded_text.text.rfind(folded_query.text)
    if start < 0:
        raise SubjectNotFoundError(
            f"record {record}: the query '{query}' cannot be found in the decoded prompt; "
            "does the chat template or the tokenizer rewrite or truncate it?"
        )
    return _token_span(token_ids, tokenizer, *folded_text.source_span(start + within[0], start + within[1]))


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
    text = fold(_decode(token_ids, tokenizer))
    matches = [(span[1], -span[0], subject) for subject in subjects if (span := _last_match(text, subject)) is not None]
    if not matches:
        return None
    end, negative_start, subject = max(matches)
    return subject, _token_span(token_ids, tokenizer, *text.source_span(-negative_start, end))


def _decode(token_ids: Sequence[int], tokenizer: SupportsDecode) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _token_span(token_ids: Sequence[int], tokenizer: SupportsDecode, start: int, end: int) -> TokenSpan:
    """Map a non-empty character range of the decoded text to the tokens that hold any part of it."""
    first = _count_tokens(token_ids, tokenizer, start)  # complete the characters before the range
    if first:
        before = _decode(token_ids[:first], tokenizer)
        if len(before) > start:  # the last of them holds the beginning of the range, too
            first -= 1
    last = _count_tokens(token_ids, tokenizer, end) - 1
    while first < last and _decode(token_ids[: first + 1], tokenizer) == _decode(token_ids[:first], tokenizer):
        first += 1  # tokens without text
    return TokenSpan(min(first, last), last)


def _count_tokens(token_ids: Sequence[int], tokenizer: SupportsDecode, length: int) -> int:
    """Return the smallest number of tokens whose decoded text contains the first `length` characters completely.

    A character that is split over tokens is decoded to replacement characters until its last token is there.
    """

    def complete(count: int) -> tuple[int, bool]:
        """Return the number of complete characters of a decoded prefix, and whether it holds nothing else."""
        text = _decode(token_ids[:count], tokenizer)
        stripped = text.rstrip(_REPLACEMENT)
        return len(stripped), stripped == text

    count = bisect_left(range(len(token_ids)), True, key=lambda count: complete(count)[0] >= length)
    # LLaMA decodes a run of byte tokens to replacement characters alone as long as the last character is cut off, so that
    # lengths are not monotone within such a run: search it to its start
    for shorter in reversed(range(count)):
        number, is_complete = complete(shorter)
        if number >= length:
            count = shorter
        elif is_complete:
            break
    return count


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
