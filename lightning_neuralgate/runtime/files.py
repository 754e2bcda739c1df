"""Where this package keeps what it can make again, and how it writes files that are never half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_neuralgate.errors import DataFormatError


def cache_folder() -> Path:
    """The cache: `$NEURALGATE_CACHE`, or `lightning-neuralgate` in the user's cache folder. Safe to delete."""
    chosen = os.environ.get("NEURALGATE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else base / "lightning-neuralgate"


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes `target` when the block ends well, and vanishes otherwise.

    The block writes a file or makes a folder there. A file at `target` is replaced; into a folder that is already there
    the new files are moved one by one, so whatever else it holds stays.

    Raises:
        DataFormatError: a folder stands where a file is to be written, or a file where a folder is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=_draft_prefix(target)) as scratch:
        draft = Path(scratch) / target.name
        yield draft
        _move(draft, target)


@contextmanager
def atomic_replace(target: Path) -> Iterator[Path]:
    """Like `atomic_write` for a folder of which nothing old is to stay: `target` is the old one or the new one, whole.

    Between the two, for a moment, the old one lies beside it as `.NAME.replaced`; `restore_replaced` is for a process that
    was killed just then.
    """
    target = target.resolve()
    restore_replaced(target)
    old = _replaced(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=_draft_prefix(target)) as scratch:
        draft = Path(scratch) / target.name
        yield draft
        if old.exists():  # `target` has come in its place, and the process was killed then
            os.replace(old, Path(scratch) / "older")
        try:
            if target.exists():
                os.replace(target, old)
            os.replace(draft, target)
        except BaseException:
            restore_replaced(target)
            raise
        if old.exists():
            os.replace(old, Path(scratch) / "old")  # at once; to delete it may take a while


def restore_replaced(target: Path) -> bool:
    """Put back what `atomic_replace` had moved away when the process was killed, where nothing has come in its place.

    Returns:
        Whether there was such a thing.
    """
    target = target.resolve()
    old = _replaced(target)
    if not old.exists():
        return False
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if target.exists():
        return False
    os.replace(old, target)
    return True


def remove_drafts(*targets: Path) -> None:
    """Remove what `atomic_write` and `atomic_replace` left unfinished beside some targets when the process was killed.

    Nobody may be writing them.
    """
    for target in targets:
        for draft in target.parent.glob(f"{_draft_prefix(target)}*"):
            shutil.rmtree(draft, ignore_errors=True)


def _draft_prefix(target: Path) -> str:
    return f".{target.name}.draft-"


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _move(source: Path, target: Path) -> None:
    if source.is_dir() and target.is_dir():
        for entry in source.iterdir():
            _move(entry, target / entry.name)
        return
    try:
        os.replace(source, target)
    except (IsADirectoryError, NotADirectoryError) as error:
        there, wanted = ("file", "folder") if source.is_dir() else ("folder", "file")
        raise DataFormatError(f"{target} is a {there}, and a {wanted} is to be written there; move it away") from error
