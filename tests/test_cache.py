from __future__ import annotations

from pathlib import Path

import pytest

from lightning_neuralgate.cache import written_whole


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
