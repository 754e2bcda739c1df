"""Damaged and hostile variants of a valid file."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import strategies as st

_PIECES: tuple[bytes, ...] = (
    b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\r\n", b"\r", b"\n", b"\x80", b"\xed\xa0\x80", b'"', b"\\", b"\\ud800", b"\\u0000",
    b"[" * 2000, b"{" * 70, b'{"a":' * 80, b"9" * 5000, b"1e999", b"-1", b"NaN", b"Infinity", b"null", b"true", b"[]", b"{}",
    b'""', b"../", b"/etc/passwd", b"%s%n{0}", b"{value:>999999999}", b"&a [*a]", b"*a", b"<<: ", b"!!int x",
    b"!!python/name:os.system",
    b"2023-99-99", b": ", b"- ", b"#", b",", b"\t", b"\xf0\x9f\x99\x82", b"\xe2\x80\xae", b"a" * 400, b"%!PS-Adobe-3.0\n",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**63, 10**40, 0.5, 1e308, float("nan"), float("-inf"), "", " ", "a", "a\0b", "\ud800",
    "x" * 400, "../../etc/passwd", "/", ".", "{}", "{subject}", "🙂", "\u202e", [], {}, [[]], [None], {"": None},
    {"a": {"b": {}}}, ["a", 1],
)  # fmt: skip


def damaged(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return any bytes, or one of some files with other, missing, repeated or inserted bytes, or with other JSON values."""
    return st.one_of(
        st.binary(max_size=300),
        st.builds(_damage, st.sampled_from(list(seeds)), st.randoms(use_true_random=False)),
        st.builds(_other_values, st.sampled_from(list(seeds)), st.randoms(use_true_random=False)),
    )


def random_damage(seeds: Sequence[bytes], random: Random) -> bytes:
    """Return a damaged file without hypothesis, which takes longer than the readers."""
    kind = random.random()
    if kind < 0.1:
        return random.randbytes(random.randrange(300))
    return (_damage if kind < 0.55 else _other_values)(random.choice(list(seeds)), random)


def _damage(content: bytes, random: Random) -> bytes:
    for _ in range(random.randint(0, 4)):
        start = random.randint(0, len(content))
        end = min(len(content), start + random.choice((0, 0, 1, 2, 8, 64)))
        kind = random.randrange(5)
        if kind == 0:
            content = content[:start]
        elif kind == 1:
            content = content[:start] + random.randbytes(end - start or 1) + content[end:]
        elif kind == 2:
            content = content[:end] + content[start:end] + content[end:]
        else:
            content = content[:start] + random.choice(_PIECES) + content[end:]
    return content


def _other_values(content: bytes, random: Random) -> bytes:
    """Replace, remove or add values in a JSON document or in a line of JSON lines."""
    try:
        text = content.decode()
        lines = [json.loads(text)] if text.count("\n") < 2 else [json.loads(line) for line in text.splitlines() if line]
    except ValueError:
        return _damage(content, random)
    for _ in range(random.randint(1, 3)):
        places = [place for line in lines for place in _places(line)] or [(lines, 0)]
        container, key = random.choice(places)
        kind = random.randrange(4)
        if kind == 0 and len(container) > 1:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[random.choice(("more", "", "image", "\ud800"))] = copy.deepcopy(random.choice(_VALUES))
        else:
            container[key] = copy.deepcopy(random.choice(_VALUES))
    return "\n".join(json.dumps(line) for line in lines).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return each container with each of its keys, of a nest of lists and dictionaries."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        container = waiting.pop()
        if isinstance(container, (dict, list)):
            keys = list(container) if isinstance(container, dict) else range(len(container))
            found += [(container, key) for key in keys]
            waiting += [container[key] for key in keys]
    return found
