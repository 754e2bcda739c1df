"""Where this package keeps what it can make again, and how it writes files that are never half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def cache_folder() -> Path:
    """The cache: `$NEURALGATE_CACHE`, or `lightning-neuralgate` in the user's cache folder. Safe to delete."""
    chosen = os.environ.get("NEURALGATE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else base / "lightning-neuralgate"


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes `target` when the block ends well, and vanishes otherwise.

    The block writes a file or makes a folder there; what stood at `target` before is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        draft = Path(scratch) / target.name
        yield draft
        if target.is_dir():
            os.replace(target, Path(scratch) / "replaced")
        os.replace(draft, target)
