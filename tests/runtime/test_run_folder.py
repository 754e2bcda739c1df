"""Folders of progress: whose they are, who holds them, and what is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_neuralgate.errors import ResumeError
from lightning_neuralgate.runtime.run_folder import UNFINISHED, has_progress, is_run_folder, remove_progress, run_folder

HOLD = """
import sys, time
from pathlib import Path
from lightning_neuralgate.runtime.run_folder import run_folder
with run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_second_run_is_refused_by_the_name_of_the_first_until_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "out" / UNFINISHED
    child = holder(folder)
    try:
        with (
            pytest.raises(ResumeError, match=rf"out is in use by another run \(process {child.pid}, host .*since 20"),
            run_folder(folder),
        ):
            pass
        assert is_run_folder(folder), "a refused run removes nothing"
    finally:
        child.kill()
        child.wait()
    with run_folder(folder):
        (folder / "part-0.jsonl").write_text("{}\n")
    assert has_progress(folder)


def test_a_folder_of_someone_else_is_refused_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / UNFINISHED
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    for use in (lambda: run_folder(folder).__enter__(), lambda: remove_progress(folder)):
        with pytest.raises(ResumeError, match=r"unfinished holds files that no run has written .*; move it away"):
            use()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ResumeError, match="is a link"), run_folder(folder):
        pass
    folder.unlink()
    folder.write_text("a file")
    with pytest.raises(ResumeError, match="is a file"), run_folder(folder):
        pass
    with pytest.raises(ResumeError, match="a part of that path is a file"), run_folder(folder / "deep" / UNFINISHED):
        pass


def test_only_files_of_runs_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / UNFINISHED
    with run_folder(folder):
        (folder / "records").mkdir()
        ours = [
            folder / "step-000000002-0a.ckpt",
            folder / "part-0.jsonl",
            folder / "records" / f"{'0a' * 16}.safetensors",
        ]
        for file in ours:
            file.write_text("progress")
        (folder / ".answers.draft-abcdefgh").mkdir()
        (folder / "notes.txt").write_text("mine")
        remove_progress(folder)
        assert [path.name for path in folder.iterdir()] == ["notes.txt"]
        (folder / "notes.txt").unlink()
    with run_folder(folder):
        (folder / "part-0.jsonl").write_text("progress")
        remove_progress(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_refused_at_its_start_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out" / UNFINISHED

    def refused() -> None:
        with run_folder(folder):
            (folder / "run.json").write_text("{}")
            (folder / "part-0.jsonl").touch()
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        refused()
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_and_nested_blocks_do_not_lock(tmp_path: Path) -> None:
    folder = tmp_path / UNFINISHED
    with run_folder(folder, active=False):
        assert not folder.exists()
    with run_folder(folder):
        with run_folder(folder):
            pass
        assert is_run_folder(folder), "the outer block still holds it"
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing")
def test_a_worker_that_outlives_its_killed_run_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / UNFINISHED
    code = HOLD.replace(
        'print("held"', 'import os\n    if os.fork() == 0: time.sleep(1.5); os._exit(0)\n    print("held"'
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with run_folder(folder):
        pass
    assert not folder.exists()
