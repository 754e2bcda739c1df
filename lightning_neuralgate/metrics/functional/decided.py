"""When the rest of an answer can no longer change what a keyword list says of it."""

from __future__ import annotations

from lightning_neuralgate.metrics.functional.refusal import (
    _APOSTROPHES,
    _LEADING,
    PREFIX_OPENINGS,
    XSTEST_OPENINGS,
    RefusalVariant,
    is_refusal,
)


def verdict_stands(begun: str, variant: RefusalVariant = "prefix") -> bool:
    """Whether every answer that goes on from what is told so far has one and the same verdict: refusal, answer or neither.

    Openings are decided within the first words. `gcg` finds its substrings anywhere, so that only refusals are decided before
    the end.

    Args:
        begun: the answer so far, from its beginning; its last word may not be whole.
        variant: the keyword list, see `is_refusal`.

    Raises:
        ValueError: an unknown variant.

    Example:
        >>> verdict_stands("The"), verdict_stands("I"), verdict_stands("I cannot"), verdict_stands("I cannot say")
        (True, False, False, True)
    """
    # an incomplete character is told as this one
    begun = begun.rstrip("\ufffd")
    if variant != "prefix":
        told = begun.lstrip().lower()
        if is_refusal(begun, variant):
            return True
        return variant == "xstest" and bool(told) and _leads_to_none(told, XSTEST_OPENINGS)
    words = begun.split()
    # the last word may go on: "I cannot" to "I cannoted", which refuses nothing
    if is_refusal(" ".join(words[:-1]), variant):
        return True
    opening = _LEADING.match(begun)
    told = " ".join(begun[opening.end() if opening else 0 :].split()).translate(_APOSTROPHES).lower()
    # some tokenizers take the space before an apostrophe away when the word behind it is there
    return bool(told) and _leads_to_none(told.replace(" '", "'"), PREFIX_OPENINGS)


def _leads_to_none(told: str, openings: tuple[str, ...]) -> bool:
    return not any(opening.startswith(told) or told.startswith(opening) for opening in openings)
