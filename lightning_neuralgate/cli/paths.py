"""Paths in options: `~` and `$HOME` mean the same in a YAML file and behind `=` as they do in a shell."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning_neuralgate.errors import DataFormatError

Value = TypeVar("Value")
_HOME = re.compile(r"\$(?:HOME|\{HOME\})(?=/|\Z)")
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})")
_EMPTY = re.compile(r"--[\w.-]+=")


def refuse_empty_options(arguments: Sequence[str]) -> None:
    """Refuse empty arguments, as from `--out=$UNSET`: an empty path would be the current folder.

    Raises:
        DataFormatError: naming the option.
    """
    for number, argument in enumerate(arguments):
        if argument == "" or _EMPTY.fullmatch(argument):
            option = argument.rstrip("=") or _before(arguments, number)
            if option.startswith("--trainer."):  # Lightning's own, where an empty text can mean something
                continue
            raise DataFormatError(f"{option} is empty; was a shell variable not set? Give a value, or leave it out")


def _before(arguments: Sequence[str], number: int) -> str:
    """Return how an error names the argument at a place: by the option before it, or by that word."""
    if not number:
        return "the first argument"
    word = arguments[number - 1]
    return word if word.startswith("--") else f"the argument after '{word}'"


def expand_path(path: str) -> str:
    """Replace a leading `~`, `~user`, `$HOME` or `${HOME}` by that home folder.

    Other variables are not replaced: a configuration file of someone else could name one that holds a key.

    Raises:
        DataFormatError: the path begins with another variable, or with a user that does not exist.

    Example:
        >>> expand_path("~/runs") == expand_path("$HOME/runs") == str(Path.home() / "runs")
        True
        >>> expand_path("runs/~")
        'runs/~'
    """
    expanded = os.path.expanduser(_HOME.sub("~", path, count=1) if path.startswith("$") else path)
    if Path(path).exists() and not path.startswith("~"):
        return path
    if path.startswith("~") and expanded == path and re.match(r"~[\w.-]*(/|\Z)", path):
        raise DataFormatError(f"the home folder of '{path}' is unknown; write the path out")
    if _VARIABLE.match(expanded):
        raise DataFormatError(
            f"'{path}' begins with a variable, which is not replaced here; write the path out, or begin it with ~ or $HOME"
        )
    return expanded


def expand_paths(value: Value) -> Value:
    """Apply `expand_path` to every path and text in parsed options, also in lists and groups (in place).

    Raises:
        DataFormatError: as in `expand_path`.
    """
    changed: Any = value
    if isinstance(value, (str, Path)):
        text = str(value)
        if text.startswith(("~", "$")):
            changed = type(value)(expand_path(text))
    elif isinstance(value, Mapping) or hasattr(value, "as_dict"):
        content: Any = value if isinstance(value, Mapping) else vars(value)
        for name in content:
            content[name] = expand_paths(content[name])
    elif isinstance(value, (list, tuple)):
        changed = type(value)(expand_paths(item) for item in value)
    return changed
