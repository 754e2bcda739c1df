"""Check sdist and wheel in a folder: all tracked files of the package are in both, and each is small enough for PyPI."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "lightning_neuralgate"
LARGEST = 90_000_000
"""Bytes; PyPI takes files of up to 100 MB."""


def missing_files(folder: Path) -> dict[str, list[str]]:
    """Return the tracked files of the package that are missing in each archive of a folder with one sdist and one wheel."""
    listed = subprocess.run(["git", "ls-files", "-z", PACKAGE], capture_output=True, text=True, check=True).stdout
    tracked = set(filter(None, listed.split("\0")))
    (wheel,), (sdist,) = folder.glob(f"{PACKAGE}-*.whl"), folder.glob(f"{PACKAGE}-*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as members:
        in_sdist = {name.partition("/")[2] for name in members.getnames()}
    return {wheel.name: sorted(tracked - in_wheel), sdist.name: sorted(tracked - in_sdist)}


def main(folder: Path) -> None:
    """Print the sizes, or exit with what is wrong."""
    problems = []
    for name, missing in missing_files(folder).items():
        size = (folder / name).stat().st_size
        print(f"{name}: {size / 1e6:.1f} MB")
        if missing:
            problems.append(f"{name} lacks {len(missing)} files, such as {', '.join(missing[:3])}")
        if size > LARGEST:
            problems.append(f"{name} has {size} bytes, and at most {LARGEST} are allowed")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
