"""The cache folder, and atomic writes: files and folders that are complete or absent, even if the process is killed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
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
    are moved one by one, and its other files stay. The content is on the disk before it is moved, so that a power cut
    leaves the old or the new file, too.

    Raises:
        DataFormatError: there is a folder at `target` and the block wrote a file, or the other way round.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=temporary_prefix(target)) as folder:
        temporary = Path(folder) / target.name
        yield temporary
        sync(temporary)
        _move(temporary, target)
        sync_entry(target.parent)


def sync(path: Path) -> None:
    """Flush a file, or all files of a folder, to the disk."""
    for entry in (path, *path.rglob("*")) if path.is_dir() else (path,):
        sync_entry(entry)


def sync_entry(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to the disk."""
    if path.is_symlink() or (path.is_dir() and os.name == "nt"):  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_replace(target: Path, replaced: Callable[[Path], bool] = lambda file: True) -> Iterator[Path]:
    """Replace a whole folder: like `atomic_write`, but of the old folder only the files stay that are not `replaced`.

    In between, the old folder has the name `.NAME.replaced` for a moment; call `restore_replaced` in case the process was
    killed just then.

    Args:
        target: the folder.
        replaced: whether a file of the old folder, as a path relative to it, goes with the old folder; all by default.
    """
    target = target.resolve()
    restore_replaced(target)
    old = _replaced(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=temporary_prefix(target)) as folder:
        temporary = Path(folder) / target.name
        yield temporary
        for file in target.rglob("*"):
            name = file.relative_to(target)
            if (file.is_symlink() or file.is_file()) and not (temporary / name).exists() and not replaced(name):
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, temporary / name, follow_symlinks=False)
        sync(temporary)
        if old.exists():  # an earlier process was killed after the new folder was in place
            os.replace(old, Path(folder) / "older")
        try:
            if target.exists():
                os.replace(target, old)
            os.replace(temporary, target)
            sync_entry(target.parent)
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
        for folder in target.parent.iterdir() if target.parent.is_dir() else ():
            # the name as `TemporaryDirectory` makes it: eight characters after the prefix
            if re.fullmatch(re.escape(temporary_prefix(target)) + r"[a-z0-9_]{8}", folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def check_output(option: str, out: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Check that writing an output cannot change an input.

    Args:
        option: the output's option or argument, for the error.
        out: file or folder to be written.
        inputs: option or argument -> file or folder to be read. Those that do not exist, such as the names of hub
            repositories, are left out.

    Raises:
        DataFormatError: the output is, holds or lies in an input, links followed.
    """
    target = out.resolve()
    for name, value in inputs.items():
        if value is None or not (source := Path(value)).exists():
            continue
        source = source.resolve()
        for place, first, second in (("lies in", target, source), ("holds", source, target)):
            if first.is_relative_to(second):
                place = "is" if first == second else place
                raise DataFormatError(
                    f"{option} {out} {place} {name} {value}, which would be overwritten; give another output outside it"
                )


def temporary_prefix(target: Path) -> str:
    """Return how the names of temporary folders for a target begin; eight characters follow."""
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
