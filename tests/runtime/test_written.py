"""Folders of which only files of earlier calls are replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import remove_temporary_files
from lightning_neuralgate.runtime.written import MANIFEST_NAME, check_written, update_folder

OLD = {"index": "old", "images/a": "old", "images/b": "old"}
NEW = {"index": "new", "images/a": "new", "images/c": "new"}


def write(target: Path, files: Mapping[str, str], **options: Any) -> None:
    with update_folder(target, "index", **options) as draft:
        for name, text in files.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_files_of_earlier_calls_are_replaced_and_others_stay(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, OLD)
    (target / "images" / "mine").write_text("mine")
    write(target, NEW, stale=["images/*"])
    assert contents(target) == {**NEW, "images/mine": "mine"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["index", "images/a", "images/c", "images/[x]"])
def test_a_file_that_is_someone_elses_is_not_replaced(tmp_path: Path, name: str) -> None:
    target = tmp_path / "out"
    write(target, OLD)
    (target / name).write_text("written by hand")
    before = contents(target)
    with pytest.raises(
        DataFormatError, match=rf"{re.escape(name)} would be replaced, but was not written by an earlier run"
    ):
        write(target, {**NEW, name: "new"})
    with pytest.raises(DataFormatError, match=re.escape(name)):
        check_written(target, ["index", "images/*"] if name != "images/c" else [name])
    assert contents(target) == before


def test_nothing_is_written_through_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    target = tmp_path / "out"
    target.mkdir()
    (target / "images").symlink_to(tmp_path / "mine", target_is_directory=True)
    with pytest.raises(DataFormatError, match=r"images is a link, and files would be written elsewhere; remove it"):
        write(target, NEW)
    assert not contents(tmp_path / "mine")
    assert not contents(target)


@pytest.mark.parametrize("calls", [1, 2])
def test_a_folder_that_is_not_right_stays_as_it_was(tmp_path: Path, calls: int) -> None:
    target, seen = tmp_path / "out", list[Path]()
    write(target, OLD)

    def verify(folder: Path) -> None:
        seen.append(folder)
        if len(seen) == calls:
            raise ValueError("not right")

    with pytest.raises(ValueError, match="not right"):
        write(target, NEW, verify=verify, stale=["images/*"])
    assert contents(target) == OLD
    write(target, NEW)  # its files still count as ours
    seen.clear()
    with pytest.raises(ValueError, match="not right"):
        write(tmp_path / "another", NEW, verify=verify)
    assert list(tmp_path.iterdir()) == [target]


class _Killed(BaseException):
    """Simulates a kill: no cleanup runs after it."""


def test_a_kill_at_any_step_leaves_old_or_new_files_or_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes, rename = set(), os.replace
    for step in range(1, 30):
        target, steps = tmp_path / f"{step}" / "out", list[Path]()
        write(target, OLD)

        def killed(source: Path, to: Path | None = None, steps: list[Path] = steps, step: int = step) -> None:
            steps.append(source)
            if len(steps) >= step:
                raise _Killed
            assert to is not None, "nothing is undone unless a step fails"
            rename(source, to)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            patch.setattr(Path, "unlink", killed)  # a killed process undoes nothing
            try:
                write(target, NEW)
            except _Killed:
                pass
            else:
                break
        found = contents(target)
        if "index" in found:
            mixed = {found["images/a"], found["index"]}
            assert len(mixed) == 1, f"labels of one run next to pictures of another, killed at step {step}"
        outcomes.add(found.get("index"))
        remove_temporary_files(target)
        write(target, NEW)
        assert contents(target).items() >= NEW.items(), "a later call finishes"
    assert outcomes == {"old", "new", None}
