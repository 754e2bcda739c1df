from __future__ import annotations

from pathlib import Path

import pytest

from lightning_neuralgate.cache import written_whole
from lightning_neuralgate.errors import DataFormatError


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"

    def fails() -> None:
        with written_whole(target) as draft:
            draft.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fails()
    assert list(target.parent.iterdir()) == []
    for content in ("one", "two"):
        with written_whole(target) as draft:
            draft.write_text(content)
            assert draft.parent != target.parent
        assert target.read_text() == content
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_keeps_what_else_it_holds(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with written_whole(target) as draft:
            (draft / "deep").mkdir(parents=True)
            (draft / "deep" / "file").write_text(content)
        if content == "old":
            (target / "deep" / "somebody's").write_text("own")
    assert (target / "deep" / "file").read_text() == "new"
    assert (target / "deep" / "somebody's").read_text() == "own"


@pytest.mark.parametrize("there", ["file", "folder"])
def test_a_file_and_a_folder_do_not_replace_each_other(tmp_path: Path, there: str) -> None:
    target = tmp_path / "answers.jsonl"
    target.mkdir() if there == "folder" else target.write_text("old")

    def write_other() -> None:
        with written_whole(target) as draft:
            draft.write_text("new") if there == "folder" else draft.mkdir()

    with pytest.raises(
        DataFormatError, match=rf"answers.jsonl is a {there}, and a .* is to be written there; move it away"
    ):
        write_other()
    assert list(tmp_path.iterdir()) == [target]
    assert list(target.iterdir()) == [] if there == "folder" else target.read_text() == "old"
