"""Library versions, recorded with each artifact."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    versions = {"python": platform.python_version()}
    for name in ("lightning-neuralgate", "torch", "transformers", "lightning"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
