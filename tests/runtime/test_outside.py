"""Causes outside the code end a command with one line and exit code 1."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from lightning_neuralgate.cli import main, render
from lightning_neuralgate.runtime.files import cache_folder
from lightning_neuralgate.runtime.outside import outside_cause


def _raising(error: BaseException) -> Callable[..., None]:
    def run(*_: object) -> None:
        raise error

    return run


CAUSES = {
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "/out/a"), "/out/a: No space left on device; make room"),
    "a read-only disk": (OSError(errno.EROFS, "Read-only", "/out/a"), "/out/a: Read-only file system; give a folder"),
    "a full disk, safetensors": (
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "No space left on device; make room",
    ),
    "a full disk, torch": (RuntimeError("PytorchStreamWriter failed writing file data/0"), "is the disk full?"),
    "memory": (MemoryError(), "not enough memory; use smaller batches"),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSES)
def test_one_line_names_path_and_way_out(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error, message = CAUSES[name]
    monkeypatch.setattr(render, "run", _raising(error))
    assert main(["render", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("neuralgate render: ")
    assert message in printed
    assert printed.count("\n") == 1
    with pytest.raises(type(error)):
        main(["--debug", "render", "--out", str(tmp_path)])


def test_a_mistake_in_the_code_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(render, "run", _raising(KeyError("a bug")))
    with pytest.raises(KeyError):
        main(["render", "--out", str(tmp_path)])


def test_the_cache_names_its_variable() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", str(cache_folder() / "answers"))
    assert "set NEURALGATE_CACHE" in str(outside_cause(error))


def test_an_output_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sizes = "--edit_records 1 --test_records 1 --edit_pairs 1 --test_pairs 1"
    assert main(["render", "--out", str(tmp_path / "file" / "data"), *sizes.split(), "--subjects", "[passport]"]) == 1
    printed = capsys.readouterr().err
    assert str(tmp_path / "file") in printed
    assert "Traceback" not in printed


def test_a_terminal_without_the_letters_gets_a_stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(render, "run", lambda _: print("8 \u2013 9"))
    stream = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["render", "--out", str(tmp_path)]) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"8 \\u2013 9\n"  # type: ignore[attr-defined]


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(render, "run", _raising(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert main(["render", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == ""
