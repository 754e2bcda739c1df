"""Text from outside: folding of Unicode forms for comparison, and removal of control sequences before printing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4\u0060\u2032\uff07", "'"))
"""Left and right single quote, modifier apostrophe, acute, grave, prime and full-width apostrophe to the ASCII one."""

_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"), "-")
_DOTLESS_I = {0x131: "i"}
_FOLDED_TO_ASCII = {**APOSTROPHES, **_DASHES, **_DOTLESS_I}
# a run of ASCII, a Hangul syllable that is written as two or three letters, or any other character
_UNIT = re.compile("[\x00-\x7f]+|[\u1100-\u1112][\u1161-\u1175][\u11a8-\u11c2]?|.", re.DOTALL)


class FoldedText(NamedTuple):
    """A text whose characters are folded, and where they come from.

    Attributes:
        text: the folded text.
        starts: for each folded character the index at which its source begins.
        stops: for each folded character the index after its source, including accents and joiners that folding drops.
    """

    text: str
    starts: Sequence[int]
    stops: Sequence[int]

    def source_span(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of the original text that a non-empty range of the folded text comes from."""
        return self.starts[start], self.stops[stop - 1]


def fold(text: str) -> FoldedText:
    """Fold the Unicode forms in which people and programs write the same words.

    Case, compatibility forms (full width, ligatures), composed and decomposed forms, accents, Arabic and Hebrew vowel points,
    the kinds of apostrophes and dashes, and invisible characters (zero-width spaces and joiners, soft hyphens, variation
    selectors) are folded. Marks that change a letter in scripts such as Devanagari, Thai and kana stay.

    Example:
        >>> fold("R\\u00e9sume\\u0301, \\uff30\\uff41\\uff53\\u200bs").text
        'resume, pass'
        >>> fold("Re\\u0301sume\\u0301!").source_span(0, 6)
        (0, 8)
    """
    if text.isascii():
        return FoldedText(_fold_ascii(text), range(len(text)), range(1, len(text) + 1))
    pieces: list[str] = []
    starts: list[int] = []
    stops: list[int] = []
    for unit in _UNIT.finditer(text):
        start, stop = unit.span()
        if unit.group().isascii():
            pieces.append(_fold_ascii(unit.group()))
            starts += range(start, stop)
            stops += range(start + 1, stop + 1)
            continue
        piece = _fold_unit(unit.group())
        if not piece and starts and unicodedata.category(text[start]).startswith("M"):
            last = starts[-1]
            index = len(stops) - 1
            while index >= 0 and starts[index] == last:  # all characters of a ligature
                stops[index], index = stop, index - 1
        pieces.append(piece)
        starts += [start] * len(piece)
        stops += [stop] * len(piece)
    return FoldedText("".join(pieces), starts, stops)


def _fold_ascii(text: str) -> str:
    return text.lower().replace("`", "'")


@lru_cache(maxsize=16384)
def _fold_unit(unit: str) -> str:
    if unicodedata.category(unit[0]) == "Cf":
        return ""
    composed = unicodedata.normalize("NFC", unit)
    if "\uac00" <= composed <= "\ud7a3":
        return composed
    # apostrophes before decomposition, which turns an acute accent into a space with a combining one
    plain = unit.translate(_FOLDED_TO_ASCII)
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", plain).casefold())
    return "".join(character for character in folded if not _is_dropped(character)).translate(_FOLDED_TO_ASCII)


def _is_dropped(character: str) -> bool:
    """Return whether a character is an accent, a vowel point that may be left out, or a variation selector."""
    combining = unicodedata.combining(character)
    return (
        combining >= 200
        or 10 <= combining <= 35
        or "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
    )


def csv_text(text: str) -> str:
    """Return a CSV cell that spreadsheets show as text: one that they would compute gets an apostrophe in front.

    Example:
        >>> csv_text("=1+1"), csv_text("passport")
        ("'=1+1", 'passport')
    """
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) or text[:1] in ("\t", "\r", "\n") else text


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, single_line: bool = False) -> str:
    """Escape what a terminal would obey instead of showing: control characters, directional overrides, lone surrogates.

    Args:
        text: text of any origin.
        single_line: escape tabs and line breaks as well.

    Example:
        >>> printable("red \\x1b[31m text\\r")
        'red \\\\x1b[31m text\\\\r'
    """
    text = _CONTROL.sub(lambda match: match.group().encode("unicode_escape", "surrogatepass").decode("ascii"), text)
    return text.replace("\t", "\\t").replace("\n", "\\n") if single_line else text
