from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import (
    atomic_replace,
    atomic_write,
    cache_folder,
    check_output,
    remove_temporary_files,
    restore_replaced,
)


def test_atomic_write_creates_a_complete_file_or_none(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"

    def fails() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fails()
    assert list(target.parent.iterdir()) == []
    for content in ("first", "second"):
        with atomic_write(target) as temporary:
            temporary.write_text(content)
            assert temporary.parent != target.parent
        assert target.read_text() == content
    assert list(target.parent.iterdir()) == [target]


def test_atomic_write_keeps_other_files_of_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with atomic_write(target) as temporary:
            (temporary / "deep").mkdir(parents=True)
            (temporary / "deep" / "file").write_text(content)
        if content == "old":
            (target / "deep" / "other").write_text("other")
    assert (target / "deep" / "file").read_text() == "new"
    assert (target / "deep" / "other").read_text() == "other"


def test_atomic_replace_keeps_no_old_files(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    for name in ("first", "second"):
        with atomic_replace(target) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
        assert [path.name for path in target.iterdir()] == [name]
        assert list(target.parent.iterdir()) == [target]

    def fails() -> None:
        with atomic_replace(target) as temporary:
            temporary.mkdir()
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fails()
    assert (target / "second").exists()
    assert list(target.parent.iterdir()) == [target]


class _Killed(BaseException):
    """Simulates a kill: no cleanup runs after it."""


@pytest.mark.parametrize("step", [1, 2, 3])
def test_after_a_kill_at_any_step_the_folder_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    steps, rename = [], os.replace

    def killed(source: Path, to: Path) -> None:
        steps.append(to)
        if len(steps) >= step:
            raise _Killed
        rename(source, to)

    def replaces() -> None:
        with atomic_replace(target) as temporary:
            temporary.mkdir()
            (temporary / "new").touch()

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)  # also when the old folder is to be restored
        with pytest.raises(_Killed):
            replaces()
    remove_temporary_files(target)
    assert restore_replaced(target) is (step == 2)
    assert [path.name for path in target.iterdir()] == ["new" if step == 3 else "old"]
    with atomic_replace(target) as temporary:
        temporary.mkdir()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("existing", ["file", "folder"])
def test_a_file_does_not_replace_a_folder_or_the_other_way_round(tmp_path: Path, existing: str) -> None:
    target = tmp_path / "answers.jsonl"
    target.mkdir() if existing == "folder" else target.write_text("old")

    def write_other() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("new") if existing == "folder" else temporary.mkdir()

    with pytest.raises(
        DataFormatError, match=rf"answers.jsonl is a {existing}, but a .* is to be written there; move it away"
    ):
        write_other()
    assert list(tmp_path.iterdir()) == [target]
    assert list(target.iterdir()) == [] if existing == "folder" else target.read_text() == "old"


def test_environment_variables_move_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEURALGATE_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("NEURALGATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lightning-neuralgate"


def test_an_output_that_is_holds_or_lies_in_an_input_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "models" / "base"
    model.mkdir(parents=True)
    link, file = tmp_path / "link", tmp_path / "data.json"
    link.symlink_to(model, target_is_directory=True)
    file.touch()
    for out, place in (
        (model, "is"), (link, "is"), (tmp_path, "holds"), (model / ".." / ".." / "models", "holds"), (link / "new", "lies in")
    ):  # fmt: skip
        with pytest.raises(DataFormatError, match=rf"--out .* {place} --model.name .*, which would be overwritten"):
            check_output("--out", out, {"--model.name": model})
    with pytest.raises(DataFormatError, match="is --data"):
        check_output("--out", file, {"--gate": None, "--data": str(file)})
    check_output(
        "--out", tmp_path / "models" / "edited", {"--model.name": model, "--gate": "a/repository", "--more": None}
    )


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    rename, sync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("sync"), sync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda source, to: (events.append("rename"), rename(source, to)))
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("content")
    assert events == ["sync", "rename", "sync"], "the file, its name, the folder with the name"


def test_only_temporary_folders_of_our_own_are_removed(tmp_path: Path) -> None:
    for name in (".out.draft-of-my-thesis", ".out.draft-a1b2c3d_"):
        (tmp_path / name).mkdir()
    remove_temporary_files(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".out.draft-of-my-thesis"]


def test_atomic_replace_keeps_files_that_are_not_to_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "deep").mkdir(parents=True)
    for name in ("old", "notes", "deep/notes"):
        (target / name).write_text(name)
    with atomic_replace(target, lambda file: file.name == "old") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert files == {"new", "notes", "deep/notes"}
