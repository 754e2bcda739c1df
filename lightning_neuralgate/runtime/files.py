"""The cache folder, and atomic writes: files and folders that are complete or absent, even if the process is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_neuralgate.errors import DataFormatError


def cache_folder() -> Path:
    """Return the cache folder, which is safe to delete.

    It is `$NEURALGATE_CACHE`, or `lightning-neuralgate` in the user's cache folder.
    """
    chosen = os.environ.get("NEURALGATE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else base / "lightning-neuralgate"


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path that is moved to `target` at the end of the block, or removed if the block raises.

    Create a file or a folder at the temporary path. A file at `target` is replaced; into an existing folder the new files
    are moved one by one, and its other files stay.

    Raises:
        DataFormatError: there is a folder at `target` and the block wrote a file, or the other way round.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=_temporary_prefix(target)) as folder:
        temporary = Path(folder) / target.name
        yield temporary
        _move(temporary, target)


@contextmanager
def atomic_replace(target: Path) -> Iterator[Path]:
    """Replace a whole folder: like `atomic_write`, but nothing of the old folder stays.

    In between, the old folder has the name `.NAME.replaced` for a moment; call `restore_replaced` in case the process was
    killed just then.
    """
    target = target.resolve()
    restore_replaced(target)
    old = _replaced(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=_temporary_prefix(target)) as folder:
        temporary = Path(folder) / target.name
        yield temporary
        if old.exists():  # an earlier process was killed after the new folder was in place
            os.replace(old, Path(folder) / "older")
        try:
            if target.exists():
                os.replace(target, old)
            os.replace(temporary, target)
        except BaseException:
            restore_replaced(target)
            raise
        if old.exists():
            os.replace(old, Path(folder) / "old")  # moved first, since deleting it may take a while


def restore_replaced(target: Path) -> bool:
    """Move the old folder back if a process was killed within `atomic_replace`, before the new one was in place.

    Returns:
        Whether there was something to restore.
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


def remove_temporary_files(*targets: Path) -> None:
    """Remove temporary files that `atomic_write` and `atomic_replace` of these targets left when a process was killed.

    No other process may be writing the targets.
    """
    for target in targets:
        for folder in target.parent.glob(f"{_temporary_prefix(target)}*"):
            shutil.rmtree(folder, ignore_errors=True)


def _temporary_prefix(target: Path) -> str:
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
        existing, new = ("file", "folder") if source.is_dir() else ("folder", "file")
        raise DataFormatError(f"{target} is a {existing}, but a {new} is to be written there; move it away") from error
