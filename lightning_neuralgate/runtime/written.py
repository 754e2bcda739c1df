"""Folders whose files are replaced together, and only if an earlier call has written them.

`.neuralgate.json` in the folder lists the files with their checksums. A file that is not listed, or has been changed
since, is someone else's, and is not overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import atomic_write, sync, sync_entry, temporary_prefix

MANIFEST_NAME = ".neuralgate.json"


@contextmanager
def update_folder(
    target: Path,
    index: str | None = None,
    stale: Sequence[str] = (),
    verify: Callable[[Path], None] = lambda folder: None,
) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of `target` at the end of the block; other files stay.

    The index, without which the folder cannot be read, is taken away first and put back last, so that a process that is
    killed in between leaves a folder that cannot be read, and no mixture of old and new files.

    Args:
        target: the folder; created if missing.
        index: name of the index, if there is one.
        stale: glob patterns of files that are removed if an earlier call has written them and this one does not.
        verify: raises if a folder is not right. Called with the temporary folder, and again with `target`.

    Raises:
        DataFormatError: a file would be replaced that no earlier call has written, or a file of the name of a folder; or a
            folder in `target` is a link. As after every exception, `target` is as it was.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=temporary_prefix(target)) as scratch:
        temporary, old = Path(scratch) / target.name, Path(scratch) / "old"
        temporary.mkdir()
        yield temporary
        verify(temporary)
        sync(temporary)
        new = {file.relative_to(temporary).as_posix(): _checksum(file) for file in _files(temporary)}
        listed = _read_manifest(target)
        _check_folders(target, new)
        check_written(target, new)
        removed = sorted({
            file.relative_to(target).as_posix() for pattern in stale for file in target.glob(pattern)
        } & listed.keys() - new.keys())  # fmt: skip
        removed = [name for name in removed if _checksum(target / name) in listed[name]]
        kept = {name: sums for name, sums in listed.items() if name not in new and name not in removed}
        folders = {target / parent for name in new for parent in Path(name).parents}
        made = sorted((folder for folder in folders if not folder.exists()), reverse=True)
        # until all files are in place, either version may be there
        either = {name: [*listed.get(name, []), sum_of_new] for name, sum_of_new in new.items()}
        _write_manifest(target, {**listed, **either})
        first, placed = [name for name in new if name == index], list[str]()
        try:
            for name in first + removed:
                _move(target / name, old / name)
            for name in [*(name for name in new if name not in first), *first]:
                _move(target / name, old / name)
                _move(temporary / name, target / name)
                placed.append(name)
            verify(target)
        except BaseException:
            for name in placed:
                (target / name).unlink()
            for file in sorted(_files(old), key=lambda file: file.name in first):
                _move(file, target / file.relative_to(old))
            (target / MANIFEST_NAME).unlink()
            if listed:
                _write_manifest(target, listed)
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
            raise
        for folder in {(target / name).parent for name in new}:
            sync_entry(folder)
        _write_manifest(target, {**kept, **{name: [sum_of_new] for name, sum_of_new in new.items()}})


def check_written(target: Path, names: Iterable[str]) -> None:
    """Check that files may be replaced: those that exist were written by `update_folder`, and not changed since.

    Args:
        target: the folder.
        names: names or glob patterns, relative to the folder.

    Raises:
        DataFormatError: naming the first file that is someone else's.
    """
    listed = _read_manifest(target)
    for name in names:
        for file in [target / name] if (target / name).exists() else sorted(target.glob(name)):
            if _checksum(file) not in listed.get(file.relative_to(target).as_posix(), ()):
                raise DataFormatError(
                    f"{file} would be replaced, but was not written by an earlier run, or has been changed since; move it "
                    "away, or give another output folder"
                )


def _checksum(path: Path) -> str:
    if not path.is_file():
        return "no file"
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def _check_folders(target: Path, names: Iterable[str]) -> None:
    for folder in sorted({parent for name in names for parent in Path(name).parents if parent.name}):
        path = target / folder
        if path.is_symlink():
            raise DataFormatError(f"{path} is a link, and files would be written elsewhere; remove it")
        if path.exists() and not path.is_dir():
            raise DataFormatError(f"{path} is a file, but a folder is to be written there; move it away")


def _move(source: Path, target: Path) -> None:
    if source.is_symlink() or source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)


def _read_manifest(folder: Path) -> dict[str, list[str]]:
    try:
        content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        return {str(name): [str(value) for value in sums] for name, sums in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # nothing in the folder is known to be ours


def _write_manifest(folder: Path, files: Mapping[str, Sequence[str]]) -> None:
    with atomic_write(folder / MANIFEST_NAME) as draft:
        text = json.dumps({"files": dict(sorted(files.items()))}, indent=1)
        draft.write_text(text + "\n", encoding="utf-8")
