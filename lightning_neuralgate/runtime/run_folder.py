"""Folder with the progress of a run: marked as ours, held by one process at a time, removed file by file.

    OUT/unfinished/neuralgate.lock    locked while a run uses the folder; its presence marks the folder
    OUT/unfinished/holder.json        process, host, command and start of the run that holds the lock
    OUT/unfinished/...                progress, from which an interrupted run resumes

A folder that has files but no `neuralgate.lock` is someone else's, and is neither used nor removed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_neuralgate.errors import ResumeError
from lightning_neuralgate.runtime.files import atomic_write

UNFINISHED = "unfinished"
"""Subfolder of an output folder with the progress from which an interrupted run resumes."""
RUN_NAME = "run.json"
_LOCK, _HOLDER = "neuralgate.lock", "holder.json"
_PROGRESS = ("step-*.ckpt*", "part-*.jsonl", "[0-9a-f]" * 32 + ".safetensors", "layer-*.json", ".*.draft-????????")
"""Glob patterns of progress, half-written files included. Any other file but the settings is not ours, and stays."""
_SUBFOLDERS = ("records", "edit", "edits")
_SECONDS_OF_ORPHANS = 20.0
"""How long the DataLoader workers of a killed run may outlive it, with its lock."""


@contextmanager
def run_folder(folder: Path, active: bool = True) -> Iterator[None]:
    """Hold a folder of progress for the duration of the block; within the process, blocks may be nested.

    A run that ends without progress, such as one that is refused at its start, leaves no folder.

    Args:
        folder: the folder; created with its parents.
        active: whether this process uses the folder; false on all ranks but 0.

    Raises:
        ResumeError: another run holds the folder, or it is not a folder of progress; with the way out.
    """
    if not active:
        yield
        return
    folder = folder.absolute()
    made = [parent for parent in folder.parents if not parent.exists()]
    lock = _acquire(folder)
    try:
        if lock.lock_counter > 1:  # nested
            yield
            return
        held = (folder / _LOCK).stat().st_ino
        _write_holder(folder)
        try:
            yield
        finally:
            with suppress(OSError):  # also where the block has removed the folder, which another run may use by now
                if (folder / _LOCK).stat().st_ino == held:
                    (folder / _HOLDER).unlink(missing_ok=True)
                    if not has_progress(folder):
                        _remove(folder)
                for parent in made:
                    parent.rmdir()  # fails where the run has written something
    finally:
        lock.release()


def remove_progress(folder: Path) -> None:
    """Remove the progress of a run: the files that runs write, and the folder, if nothing else is in it.

    The settings go last, so that a run that is killed here resumes from what is left.

    Raises:
        ResumeError: the folder holds files, but no run has used it, or another run uses it.
    """
    if folder.exists():
        with run_folder(folder):
            _remove(folder)


def _remove(folder: Path) -> None:
    for part in (*(folder / name for name in _SUBFOLDERS), folder):
        if part.is_symlink() or not part.is_dir():
            continue
        for path in [path for pattern in _PROGRESS for path in part.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name in (RUN_NAME, _HOLDER):
            (part / name).unlink(missing_ok=True)
        if part != folder:
            with suppress(OSError):
                part.rmdir()
    with suppress(OSError):  # something else is in it, or on Windows the lock is open
        (folder / _LOCK).unlink()
        folder.rmdir()


def has_progress(folder: Path) -> bool:
    """Return whether a folder holds progress that a run could resume from, and not only settings or empty files."""
    known = {RUN_NAME, _LOCK, _HOLDER}
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in known)
    written = (path for path in files if path.stat().st_size or path.suffix == ".ckpt")
    return any(".draft" not in path.relative_to(folder).as_posix() for path in written)


def is_run_folder(folder: Path) -> bool:
    """Return whether an interrupted or a running run has used this folder."""
    return (folder / _LOCK).is_file()


def _check_ours(folder: Path) -> None:
    if folder.is_symlink():
        raise ResumeError(f"{folder} is a link, and progress would be written elsewhere; remove the link")
    if not folder.is_dir():
        raise ResumeError(
            f"{folder} is a file, and progress is to be kept in a folder of that name; move the file away"
        )
    if any(folder.iterdir()) and not is_run_folder(folder):
        raise ResumeError(
            f"{folder} holds files that no run has written ({_LOCK} is missing); move it away, or give another output folder"
        )


def _acquire(folder: Path) -> FileLock:
    lock = FileLock(folder / _LOCK, is_singleton=True)
    until: float | None = None
    while True:
        if folder.is_symlink() or folder.exists():
            _check_ours(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ResumeError(f"{folder.parent} cannot be an output folder: a part of that path is a file") from error
        try:
            lock.acquire(timeout=0)
            return lock
        except FileNotFoundError:  # the run that held it has just removed it
            continue
        except Timeout as error:
            holder = _read_holder(folder)
            gone = holder.get("host") == socket.gethostname() and not _is_running(holder.get("process"))
            until = until or time.monotonic() + _SECONDS_OF_ORPHANS
            if gone and time.monotonic() < until:
                time.sleep(0.2)
                continue
            described = ", ".join(f"{name} {value}" for name, value in holder.items()) or "which has just started"
            raise ResumeError(
                f"{folder.parent} is in use by another run ({described}); wait for its end, or give another output folder"
            ) from error


def _write_holder(folder: Path) -> None:
    content = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join(Path(word).name if index == 0 else word for index, word in enumerate(sys.argv[:2])),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with atomic_write(folder / _HOLDER) as draft:
        draft.write_text(json.dumps(content), encoding="utf-8")


def _read_holder(folder: Path) -> dict[str, object]:
    try:
        return dict(json.loads((folder / _HOLDER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _is_running(process: object) -> bool:
    if not isinstance(process, int) or os.name == "nt":  # there, signal 0 ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
