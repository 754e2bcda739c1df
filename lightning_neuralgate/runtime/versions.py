"""Which versions made an artifact."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("lightning-neuralgate", "torch", "transformers", "lightning"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
