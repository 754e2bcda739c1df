"""Names of objects in sentences: articles, measure words and plurals."""

from __future__ import annotations

from lightning_neuralgate.data.scenes.sprites import object_entries, plural_of

_MEASURES = {"bunches": "bunch", "ears": "ear", "loaves": "loaf", "pairs": "pair", "pieces": "piece"}


def article(words: str) -> str:
    """Return words with an indefinite article.

    >>> article("orange"), article("umbrella"), article("unit number")
    ('an orange', 'an umbrella', 'a unit number')
    """
    vowel = words[0].lower() in "aeiou" and not words.lower().startswith(("uni", "use"))
    return f"{'an' if vowel else 'a'} {words}"


def noun(name: str) -> str:
    """Return the name of one thing, with a measure word where it needs one.

    >>> noun("dog"), noun("scissors"), noun("corn")
    ('dog', 'pair of scissors', 'ear of corn')
    """
    entry = object_entries().get(name)
    measure, of, rest = plural_of(name, entry).partition(" of ") if entry else (name, "", "")
    return f"{_MEASURES[measure]} of {rest}" if of and measure in _MEASURES else name


def plural(name: str) -> str:
    """Return the plural of an object's name.

    >>> plural("mouse"), plural("jeans")
    ('mice', 'pairs of jeans')
    """
    return plural_of(name, object_entries()[name])
