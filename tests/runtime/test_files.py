from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import atomic_replace, atomic_write, remove_temporary_files, restore_replaced


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"

    def fails() -> None:
        with atomic_write(target) as draft:
            draft.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fails()
    assert list(target.parent.iterdir()) == []
    for content in ("one", "two"):
        with atomic_write(target) as draft:
            draft.write_text(content)
            assert draft.parent != target.parent
        assert target.read_text() == content
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_keeps_what_else_it_holds(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with atomic_write(target) as draft:
            (draft / "deep").mkdir(parents=True)
            (draft / "deep" / "file").write_text(content)
        if content == "old":
            (target / "deep" / "somebody's").write_text("own")
    assert (target / "deep" / "file").read_text() == "new"
    assert (target / "deep" / "somebody's").read_text() == "own"


def test_a_replaced_folder_keeps_nothing_old(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    for name in ("one", "two"):
        with atomic_replace(target) as draft:
            draft.mkdir()
            (draft / name).touch()
        assert [path.name for path in target.iterdir()] == [name]
        assert list(target.parent.iterdir()) == [target]

    def fails() -> None:
        with atomic_replace(target) as draft:
            draft.mkdir()
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fails()
    assert (target / "two").exists()
    assert list(target.parent.iterdir()) == [target]


class _Killed(BaseException):
    """Ends a process at once: nothing is put back behind it."""


@pytest.mark.parametrize("step", [1, 2, 3])
def test_whenever_it_is_killed_a_replaced_folder_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    steps, rename = [], os.replace

    def dies(source: Path, to: Path) -> None:
        steps.append(to)
        if len(steps) >= step:
            raise _Killed
        rename(source, to)

    def replaces() -> None:
        with atomic_replace(target) as draft:
            draft.mkdir()
            (draft / "new").touch()

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)  # and so does whatever would put something back
        with pytest.raises(_Killed):
            replaces()
    remove_temporary_files(target)
    assert restore_replaced(target) is (step == 2)
    assert [path.name for path in target.iterdir()] == ["new" if step == 3 else "old"]
    with atomic_replace(target) as draft:
        draft.mkdir()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("there", ["file", "folder"])
def test_a_file_and_a_folder_do_not_replace_each_other(tmp_path: Path, there: str) -> None:
    target = tmp_path / "answers.jsonl"
    target.mkdir() if there == "folder" else target.write_text("old")

    def write_other() -> None:
        with atomic_write(target) as draft:
            draft.write_text("new") if there == "folder" else draft.mkdir()

    with pytest.raises(
        DataFormatError, match=rf"answers.jsonl is a {there}, and a .* is to be written there; move it away"
    ):
        write_other()
    assert list(tmp_path.iterdir()) == [target]
    assert list(target.iterdir()) == [] if there == "folder" else target.read_text() == "old"
