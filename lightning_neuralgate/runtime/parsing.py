"""JSON, JSON lines and YAML: one strict, bounded reader for every file, whose errors name file and line.

A byte order mark and Windows line ends are accepted. Not accepted, because readers disagree about them or fail on them later:
other encodings than UTF-8, NaN and infinity, repeated keys, halves of surrogate pairs, deep nesting, and very long numbers.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from lightning_neuralgate.errors import DataFormatError, NeuralGateError

LONGEST_LINE = 16 * 2**20
"""Bytes; longer lines are not read into memory."""
LARGEST_JSON = 2**30
"""Bytes of a JSON file."""
LARGEST_YAML = 2**18
"""Bytes of a YAML file; shipped ones have at most 10 kB."""
MAX_DEPTH = 64
"""Lists and mappings inside each other."""
MAX_YAML_VALUES = 100_000
"""Values of a YAML file after its aliases have been expanded."""
_MAX_DIGITS = 64
_LARGEST_NUMBER = 1e15
"""Of a YAML file."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class ParseError(ValueError):
    """Content that is not valid.

    Attributes:
        reason: what is wrong.
        line: the line of the content, from 1; None if unknown.
        token: the JSON value or key that is wrong; None if unknown.
    """

    def __init__(self, reason: str, line: int | None = None, token: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.line, self.token = reason, line, token


def read_bytes(file: Path, largest: int, error: type[NeuralGateError] = DataFormatError) -> bytes:
    """Read a file of at most `largest` bytes.

    Raises:
        NeuralGateError: of the given class, naming the file, if it cannot be read or is larger.
    """
    parts, size = [], 0
    try:
        with file.open("rb") as stream:
            while size <= largest and (part := stream.read(2**20)):
                parts.append(part)
                size += len(part)
    except (OSError, ValueError) as cause:  # ValueError: a null character in the name
        raise error(f"{file} cannot be read: {cause}") from cause
    if size > largest:
        raise error(f"{file} is larger than {largest >> 10} KiB; is this the right file?")
    return b"".join(parts)


def decode(content: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        ParseError: naming the line of the first byte that is not UTF-8.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ParseError("not UTF-8 but UTF-16, as Windows PowerShell writes it; save it as UTF-8", 1)
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ParseError(f"not UTF-8: {error}", content.count(b"\n", 0, error.start) + 1) from error


def read_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line of a file; only the beginning of those longer than `LONGEST_LINE`.

    A byte order mark is left out.

    Raises:
        DataFormatError: the file cannot be read.
    """
    try:
        with file.open("rb") as lines:
            number = 0
            while line := lines.readline(LONGEST_LINE + 1):
                rest = line
                while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
                    rest = lines.readline(LONGEST_LINE + 1)
                number += 1
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except (OSError, ValueError) as error:
        raise DataFormatError(f"{file} cannot be read: {error}") from error


def line_text(content: bytes) -> str:
    """Return the text of a line from `read_lines`.

    Raises:
        ParseError: it is too long or not UTF-8.
    """
    if len(content) > LONGEST_LINE:
        raise ParseError(f"longer than {LONGEST_LINE >> 20} MiB; is this the right file?")
    return decode(content)


def parse_json(content: str | bytes, own: bool = False) -> Any:
    """Parse JSON.

    Args:
        content: text, or UTF-8.
        own: accept NaN, infinity and halves of surrogate pairs, as in metrics and answers that this package wrote.

    Raises:
        ParseError: naming reason and line.

    Example:
        >>> parse_json('{"a": [1, 2.5, "three"]}')
        {'a': [1, 2.5, 'three']}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ...
        lightning_neuralgate.runtime.parsing.ParseError: not JSON: the key 'a' is given twice
    """
    text = decode(content) if isinstance(content, bytes) else content
    hooks: dict[str, Any] = {} if own else {"parse_constant": _refuse_constant, "parse_float": _finite}
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_short_number, **hooks)
    except json.JSONDecodeError as error:
        raise ParseError(f"not JSON: {error.msg} (column {error.colno})", error.lineno) from error
    except RecursionError as error:
        raise ParseError(_TOO_DEEP, _too_deep_line(text)) from error
    except ParseError as error:  # of a hook, which does not get the position
        if error.token is not None:
            found = list(re.finditer(rf"(?<![\w.+-]){re.escape(error.token)}(?![\w.])", text))
            start = found[-1].start() if found else text.find(error.token)
            error.line = text.count("\n", 0, start) + 1 if start >= 0 else None
        raise
    _check_depth(value, text)
    if not own and (match := _SURROGATE.search(text)):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            line = text.count("\n", 0, match.start()) + 1
            raise ParseError(
                f"not JSON: half a surrogate pair ({text[match.start() :][:6]}) is no character", line
            ) from error
    return value


def parse_json_line(content: bytes, place: object, own: bool = False) -> dict[str, Any]:
    """Parse a line from `read_lines` that holds a JSON object; `own` as in `parse_json`.

    Raises:
        DataFormatError: starting with `place`.
    """
    try:
        value = parse_json(line_text(content), own)
    except ParseError as error:
        raise DataFormatError(f"{place}: {error.reason}") from error
    if not isinstance(value, dict):
        raise DataFormatError(f"{place}: expected one JSON object per line, found {type(value).__name__}")
    return value


def json_lines(file: Path, own: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place for error messages, "FILE, line N", and the content of each line of a file of JSON objects.

    Empty lines are skipped; `own` as in `parse_json`.

    Raises:
        DataFormatError: naming file and line.
    """
    for number, line in read_lines(file):
        if line.strip():
            place = f"{file}, line {number}"
            yield place, parse_json_line(line, place, own)


def read_json(file: Path, error: type[NeuralGateError] = DataFormatError, own: bool = False, hint: str = "") -> Any:
    """Read a JSON file.

    Args:
        file: the file.
        error: class of the exceptions.
        own: see `parse_json`.
        hint: what to do if the file cannot be used, for the message.

    Raises:
        NeuralGateError: of the given class, naming file and line.
    """
    hint = f"; {hint}" if hint else ""
    try:
        return parse_json(read_bytes(file, LARGEST_JSON, error), own)
    except ParseError as cause:
        line = f", line {cause.line}" if cause.line else ""
        raise error(f"{file}{line}: {cause.reason}{hint}") from cause


def read_json_object(
    file: Path, error: type[NeuralGateError] = DataFormatError, own: bool = False, hint: str = ""
) -> dict[str, Any]:
    """Read a JSON file that holds an object; see `read_json`."""
    content = read_json(file, error, own, hint)
    if not isinstance(content, dict):
        raise error(f"{file}: expected a JSON object, found {type(content).__name__}{f'; {hint}' if hint else ''}")
    return content


_TOO_DEEP = f"not JSON: lists and objects are nested more than {MAX_DEPTH} deep"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ParseError(f"not JSON: the key '{key[:80]}' is given twice", token=json.dumps(key))
            seen.add(key)
    return content


def _refuse_constant(name: str) -> Any:
    raise ParseError(f"not JSON: {name} is not a JSON number", token=name)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ParseError(f"not JSON: the number {digits[:20]} is too large", token=digits)
    return value


def _short_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ParseError(
            f"not JSON: the number {digits[:8]}... has {len(digits)} digits; {_MAX_DIGITS} are possible", token=digits
        )
    return int(digits)


def _check_depth(value: Any, text: str) -> None:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
    if level:
        raise ParseError(_TOO_DEEP, _too_deep_line(text))


def _too_deep_line(text: str) -> int:
    """Return the line on which the nesting gets too deep."""
    depth, line, quoted, escaped = 0, 1, False, False
    for letter in text:
        if letter == "\n":
            line += 1
        elif quoted:
            quoted, escaped = escaped or letter != '"', letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return line
        elif letter in "]}":
            depth -= 1
    return line


@dataclass(frozen=True)
class YamlFile:
    """A YAML file.

    Attributes:
        file: the file.
        content: its content.
        root: the parsed node that `content` was made of.
    """

    file: Path
    content: Any
    root: Any

    def place(self, path: Sequence[str | int]) -> str:
        """Return "FILE, line N" of a value, given the keys and indices that lead to it; as many of them as exist."""
        node = self.root
        for part in path:
            if isinstance(node.value, str):
                break
            pairs = dict(enumerate(node.value)) if isinstance(part, int) else {}
            if node.id == "mapping":
                pairs = {key.value: value for key, value in node.value}
                part = str(part)
            if part not in pairs:
                continue
            node = pairs[part]
        return f"{self.file}, line {node.start_mark.line + 1}"


def read_yaml(file: Path) -> YamlFile:
    """Read a YAML file with one document; keys must be unique, aliases and nesting are bounded.

    Raises:
        DataFormatError: naming file and line.
    """
    content = read_bytes(file, LARGEST_YAML)
    try:
        text = decode(content)
    except ParseError as error:
        raise DataFormatError(f"{file}, line {error.line}: {error.reason}") from error
    return YamlFile(file, *_parse_yaml(text, file))


def parse_yaml(text: str, place: object) -> Any:
    """Parse YAML, such as the value of an option; see `read_yaml`.

    Raises:
        DataFormatError: starting with `place`.
    """
    return _parse_yaml(text, place)[0]


def _parse_yaml(text: str, place: object) -> tuple[Any, Any]:
    import yaml

    line: int | None = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise ParseError("it is empty", 1)
        _check_nodes(loader, root)
        return loader.construct_document(root), root
    except ParseError as error:
        line, reason, cause = error.line, error.reason, error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, cause = mark.line + 1 if mark else None, error  # type: ignore[assignment]
        reason = " ".join(filter(None, (error.context, error.problem)))
    except RecursionError as error:
        reason, cause = f"it is nested more than {MAX_DEPTH} deep", error  # type: ignore[assignment]
        line = next(
            (event.start_mark.line + 1 for depth, event in _nested(yaml.parse(text)) if depth > MAX_DEPTH), None
        )
    except Exception as error:  # SafeLoader does not wrap all errors
        reason, cause = str(error) or repr(error), error  # type: ignore[assignment]
    raise DataFormatError(f"{place}{f', line {line}' if line else ''}: not valid YAML: {reason}") from cause


def _nested(events: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    depth = 0
    for event in events:
        depth += type(event).__name__.endswith(("SequenceStartEvent", "MappingStartEvent"))
        depth -= type(event).__name__.endswith(("SequenceEndEvent", "MappingEndEvent"))
        yield depth, event


def _check_nodes(loader: Any, root: Any) -> None:
    """Check values, depth, repeated keys and the size after expansion of a parsed YAML document."""
    sizes: dict[int, int] = {}

    def size(node: Any, above: tuple[int, ...]) -> int:
        line = node.start_mark.line + 1
        if id(node) in above:
            raise ParseError("an alias stands inside what it repeats", line)
        if len(above) > MAX_DEPTH:
            raise ParseError(f"it is nested more than {MAX_DEPTH} deep", line)
        if isinstance(node.value, str):
            _check_scalar(loader, node)
            return 1
        if id(node) not in sizes:
            inside = (*above, id(node))
            children = node.value
            if node.id == "mapping":
                _check_keys(node)
                children = [part for pair in node.value for part in pair]
            sizes[id(node)] = 1 + sum(size(child, inside) for child in children)
            if sizes[id(node)] > MAX_YAML_VALUES:
                raise ParseError(f"its aliases expand to more than {MAX_YAML_VALUES} values", line)
        return sizes[id(node)]

    size(root, ())


def _check_scalar(loader: Any, node: Any) -> None:
    line = node.start_mark.line + 1
    if node.tag.endswith((":merge", ":value")):  # the keys << and =
        return
    try:
        node.value.encode()
        value = loader.yaml_constructors[node.tag](loader, node)
    except UnicodeEncodeError as error:
        raise ParseError("half a surrogate pair is no character", line) from error
    except Exception as error:  # ValueError at a date, KeyError at `!!bool x`, AttributeError at `!!timestamp x`, ...
        kind = node.tag.rpartition(":")[2]
        raise ParseError(f"'{node.value[:40]}' is no value of the type '{kind}'; put text in quotes", line) from error
    if isinstance(value, (int, float)) and not abs(value) < _LARGEST_NUMBER:  # NaN is not below anything
        raise ParseError(f"the number '{node.value[:40]}' is too large; put text in quotes", line)


def _check_keys(node: Any) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if not isinstance(key.value, str):
            raise ParseError("a key is not a plain value", key.start_mark.line + 1)
        if (key.tag, key.value) in seen:
            raise ParseError(f"the key '{key.value[:80]}' is given twice", key.start_mark.line + 1)
        seen.add((key.tag, key.value))


def described_scalar(value: Any) -> str:
    """Describe what YAML made of a value that was to be text.

    >>> described_scalar(False), described_scalar(5)
    ('the boolean False', 'the number 5')
    """
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"the boolean {value}"
    if isinstance(value, (int, float)):
        return f"the number {str(value)[:40] if abs(value) < 1e30 else 'of many digits'}"
    if isinstance(value, date):
        return f"the date {value}"
    return f"a {'mapping' if isinstance(value, Mapping) else type(value).__name__}"
