"""Format names, numbers and untrusted text for the report."""

from __future__ import annotations

import unicodedata

MODEL_NAMES = {"unedited": "Unedited", "gated": "Gated edit", "ungated": "Ungated edit"}
SPLIT_NAMES = {"test": "Test", "unseen_attributes": "Unseen attributes", "unseen_subjects": "Unseen subjects"}
SPLIT_NOTES = {
    "test": "new pictures of edited subjects",
    "unseen_attributes": "new attributes of edited subjects",
    "unseen_subjects": "subjects that were not edited",
}
NOT_MEASURED = "n/a"

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: object, limit: int = 300) -> str:
    """Format untrusted text as one line with invisible characters made visible.

    White space collapses to single spaces; control, format (bidi, zero-width) and surrogate characters are replaced by
    their code points; text longer than `limit` characters is truncated. The result still has to be escaped for HTML.

    Example:
        >>> visible("a\\u202eb\\n c")
        'a⟨U+202E⟩b c'
        >>> visible("abcdef", limit=3)
        'abc… (6 characters)'
    """
    full = str(text)
    line = " ".join("".join(_visible_character(character) for character in full[:limit]).split())
    return line if len(full) <= limit else f"{line}… ({len(full):,} characters)"


def _visible_character(character: str) -> str:
    if character in "\t\n\r":
        return " "
    return f"⟨U+{ord(character):04X}⟩" if unicodedata.category(character) in _HIDDEN else character


def percent(share: float) -> str:
    """Format a share as a percentage; only an exact 0 or 1 becomes 0 % or 100 %.

    Example:
        >>> [percent(share).replace("\\u00a0", " ") for share in (0.0, 0.004, 0.934, 0.998, 1.0)]
        ['0 %', 'under 1 %', '93 %', 'over 99 %', '100 %']
    """
    share = round(share, 6)
    if 0 < share < 0.01:
        return "under 1\u00a0%"
    if 0.99 < share < 1:
        return "over 99\u00a0%"
    return f"{100 * share:.0f}\u00a0%"


def points(difference: float) -> str:
    """Format a difference of two shares in percentage points.

    Example:
        >>> points(0.06), points(0.01), points(0.004)
        ('6 points', '1 point', 'under 1 point')
    """
    count = round(100 * abs(difference))
    return "under 1 point" if count == 0 else f"{count} point{'s' if count > 1 else ''}"


def join_words(parts: list[str], conjunction: str = "and") -> str:
    """Join parts of a sentence: "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {conjunction} {parts[-1]}"
