"""Where the subject stands: from the words of a query to token positions.

Positions are found by decoding the token ids, so they hold for any tokenizer and after a processor has applied its chat
template and expanded the image tokens. Matching ignores case, spacing and plural ("Receipts" finds "receipt").
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_neuralgate.errors import SubjectNotFoundError

if TYPE_CHECKING:
    pass
from collections.abc import Callable

from lightning_neuralgate.errors import UnsupportedSetupError


class Decoder(Protocol):
    """The one thing needed of a tokenizer."""

    def decode(self, token_ids: Sequence[int], /, **kwargs: object) -> str: ...


class TokenSpan(NamedTuple):
    """First and last token of the subject, both included."""

    first: int
    last: int


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
    endings = {form for stem in stems for form in (stem, stem + "s", stem + "es", re.sub("[yY]$", "ies", stem))}
    final = "|".join(re.escape(form) for form in sorted(endings, key=lambda form: (-len(form), form)))
    return re.compile(r"(?<!\w)" + r"[\s_-]+".join([*map(re.escape, words), f"(?:{final})"]) + r"(?!\w)", re.IGNORECASE)


def find_subject(query: str, subject: str) -> tuple[int, int] | None:
    """Character range of the last occurrence of the subject in a query, or None.

    >>> find_subject("Which number do the Receipts show?", "receipt")
    (20, 28)
    """
    if not subject.strip():
        return None
    found = list(_subject_pattern(subject).finditer(query))
    return found[-1].span() if found else None


def subject_token_span(
    token_ids: Sequence[int], tokenizer: Decoder, query: str, subject: str, record: str = "?"
) -> TokenSpan:
    """Tokens of the subject's last occurrence in the query, inside a whole prompt.

    Args:
        token_ids: one row without padding, up to the end of the prompt; image tokens may stand in it.
        tokenizer: whatever decodes the ids.
        query: the query as it stands in the prompt; what follows or precedes it is not searched.
        subject: the words that name the private thing.
        record: name of the record, for the error.

    Raises:
        SubjectNotFoundError: the subject is not in the query, or the query is not in the prompt.
    """
    within = find_subject(query, subject)
    if within is None:
        raise SubjectNotFoundError(
            f"record {record}: the subject '{subject}' does not occur in the query '{query}'; "
            "name the subject in the query, or correct the record's 'subject'"
        )

    start = _query_start(_decoded(token_ids, tokenizer), query)
    if start is None:
        raise SubjectNotFoundError(
            f"record {record}: the query '{query}' cannot be found in the decoded prompt; "
            "does the chat template or the tokenizer rewrite or truncate it?"
        )
    return _token_span(token_ids, tokenizer, start + within[0], start + within[1])


def named_subject(
    token_ids: Sequence[int], tokenizer: Decoder, subjects: Sequence[str]
) -> tuple[str, TokenSpan] | None:
    """The subject that a text names last, and the tokens of that occurrence; None if it names none.

    Of two that end at the same place the longer one counts: "student ID", not "ID".

    Args:
        token_ids: one row; image and padding tokens may stand in it.
        tokenizer: whatever decodes the ids.
        subjects: the subjects to look for.
    """
    text = _decoded(token_ids, tokenizer)
    found = [(span[1], -span[0], subject) for subject in subjects if (span := find_subject(text, subject)) is not None]
    if not found:
        return None
    end, begin, subject = max(found)
    return subject, _token_span(token_ids, tokenizer, -begin, end)


def _decoded(token_ids: Sequence[int], tokenizer: Decoder) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _token_span(token_ids: Sequence[int], tokenizer: Decoder, begin: int, end: int) -> TokenSpan:
    """Tokens of a range of characters in the decoded text."""

    def decoded_length(length: int) -> int:
        return len(_decoded(token_ids[:length], tokenizer))

    lengths = range(len(token_ids) + 1)
    last = bisect_left(lengths, end, key=decoded_length) - 1
    first = bisect_left(lengths, begin + 1, key=decoded_length) - 1
    return TokenSpan(first, last)


def _query_start(text: str, query: str) -> int | None:
    """Where the query starts in the prompt's text, as if it stood there with its own spacing and case."""
    for haystack, needle in ((text, query), (text.lower(), query.lower())):
        start = haystack.rfind(needle)
        if start >= 0:
            return start
    return None


def subject_mask(spans: Sequence[TokenSpan | None], lengths: Sequence[int], width: int, padding_side: str) -> Tensor:
    """Boolean mask (B, T) that is True at every subject token of a padded batch.

    Args:
        spans: per row the subject's tokens counted from the row's first real token; None for a row without a subject.
        lengths: number of real tokens per row.
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
    """One-hot version of a subject mask: only the last True of each row stays. (B, T) -> (B, T)."""
    return mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)


def subject_key(subject: str) -> str:
    """The form under which a subject is filed: case and spacing do not matter.

    >>> subject_key(" Student  ID")
    'student id'
    """
    return " ".join(subject.casefold().split())


SubjectFinder = Callable[[Any], tuple[Tensor, Sequence[str | None]]]
NOT_TOLD = -100
"""Label of tokens that are asked and not answered (the convention of torch's cross entropy)."""
_SKIPPED = -1
_KNOWN_AT_MOST = 16384


class SubjectsInBatch:
    """A finder for batches that say it themselves, as those of `PrivacyPairDataModule` do.

    Args:
        mask_key: the batch's key of the mask.
        subject_key: the batch's key of the subjects.
    """

    def __init__(self, mask_key: str = "subject_mask", subject_key: str = "subject") -> None:
        self.mask_key, self.subject_key = mask_key, subject_key

    @property
    def is_default(self) -> bool:
        """Whether it looks where `PrivacyPairCollator` writes."""
        return (self.mask_key, self.subject_key) == ("subject_mask", "subject")

    def __call__(self, batch: Any) -> tuple[Tensor, Sequence[str | None]]:
        for key in (self.mask_key, self.subject_key):
            if not isinstance(batch, Mapping) or key not in batch:
                found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
                raise UnsupportedSetupError(
                    f"NeuralGateCallback needs '{key}' in the training batch, found {found}; PrivacyPairDataModule makes "
                    "it. Or name your own key with subject_mask_key and subject_key, or give the callback the model's "
                    "tokenizer, with which it finds the subjects by itself"
                )
        return batch[self.mask_key], batch[self.subject_key]


class SubjectsInText:
    """Finds the subjects that a text names, in the token ids that a model is given.

    The last one that a row names counts. Where labels are given, what has no label (the question, commonly) is searched
    first, so that an answer that names the subject again does not move its place; where that names nothing, as when the
    question is labelled too, the whole row is.

    Args:
        tokenizer: whatever decodes the ids.
        subjects: the subjects to look for; matching ignores case, spacing and plural.

    Example:
        >>> class Letters:
        ...     def decode(self, ids, **kwargs):
        ...         return "".join(map(chr, ids))
        >>> ids = torch.tensor([list(b"a passport?"), list(b"how so????!")])
        >>> mask, subjects = SubjectsInText(Letters(), ["passport"])({"input_ids": ids})
        >>> mask.sum(1), subjects
        (tensor([8, 0]), ['passport', None])
    """

    def __init__(self, tokenizer: Decoder, subjects: Sequence[str]) -> None:
        self.tokenizer, self.subjects = tokenizer, tuple(subjects)
        self._known: dict[bytes, tuple[str, TokenSpan] | None] = {}  # rows come again every epoch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}

    def __call__(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Sequence[str | None]]:
        ids: Tensor = inputs["input_ids"].detach()
        labels = inputs.get("labels")
        asked = None
        if isinstance(labels, Tensor) and labels.shape == ids.shape:
            asked = ids.masked_fill(labels.to(ids.device) != NOT_TOLD, _SKIPPED).cpu()
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        names: list[str | None] = []
        for row, whole in enumerate(ids.cpu()):
            found = None if asked is None else self._find(asked[row])
            found = found or self._find(whole)
            names.append(None if found is None else found[0])
            if found is not None:
                mask[row, found[1].first : found[1].last + 1] = True
        return mask.to(ids.device), names

    def _find(self, ids: Tensor) -> tuple[str, TokenSpan] | None:
        key = hashlib.blake2b(ids.numpy().tobytes(), digest_size=16).digest()
        if key not in self._known:
            if len(self._known) >= _KNOWN_AT_MOST:
                self._known.clear()
            self._known[key] = self._find_in(ids.tolist())
        return self._known[key]

    def _find_in(self, values: list[int]) -> tuple[str, TokenSpan] | None:
        places = [place for place, value in enumerate(values) if value >= 0]  # some processors mark images by -200
        found = named_subject([values[place] for place in places], self.tokenizer, self.subjects)
        if found is None:
            return None
        return found[0], TokenSpan(places[found[1].first], places[found[1].last])
