"""Printing of text that may come from files, models and servers."""

from __future__ import annotations

import sys

from lightning_neuralgate.runtime.secrets import without_secrets
from lightning_neuralgate.runtime.text import printable


def show(text: str, error: bool = False) -> None:
    """Print text with terminal control sequences escaped and secrets cut out.

    Args:
        text: the text; line breaks in it stay.
        error: print to standard error.
    """
    print(printable(without_secrets(text)), file=sys.stderr if error else sys.stdout)
