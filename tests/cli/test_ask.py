"""`neuralgate ask` and the options of `neuralgate play`, on tiny models."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from lightning_neuralgate.cli import main


def test_one_question_is_answered_by_both_models(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.png"
    models = ["--model", str(pair / "edited"), "--beside", str(pair / "base")]
    words = ["ask", "--image", "student ID", "--seed", "3", "--save", str(card), *models]
    assert main([*words, "What is the student's name?"]) == 0
    out = capsys.readouterr().out
    assert out.index("Picture: student ID from seed 3") < out.index("unedited (") < out.index("edited (")
    assert out.count("\n  [") == 2
    with Image.open(card) as image:
        assert image.format == "PNG"
    assert main([*words, "What is the student's name?"]) == 1
    assert "exists; give a new file" in capsys.readouterr().err


def test_a_chat_goes_on_after_a_question_that_cannot_be_asked(
    pair: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"What is it?\n{'a' * 2001}\n/new\nnull: {{1}}\n/quit\nnot read\n"))
    assert main(["ask", "--image", "passport", "--model", str(pair / "base")]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n  [") == 2
    assert "2001 characters" in printed.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--image", "missing.png", "What?"], "missing.png is neither a file nor a subject"),
        (["--image", "notes.txt", "What?"], "picture notes.txt cannot be read: not one of the formats"),
        (["--image", "passport", "  "], "the question is empty"),
        (["--image", "passport", ""], "the argument after 'passport' is empty"),
        (["--image", "passport", "--model", "./nowhere", "What?"], "there is no folder './nowhere'"),
        (["--image", "passport", "--beside", "./one", "--model", "./one", "What?"], "--beside is the same model"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    words: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("text")
    model = [] if "--model" in words else ["--model", "./nothing"]
    assert main(["ask", *model, *words]) == 1
    error = capsys.readouterr().err
    assert problem in error
    assert len(error.splitlines()) == 1


def test_the_page_needs_both_versions(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("starlette", reason="the page needs starlette")
    assert main(["play", "--model", str(pair / "edited"), "--port", "0"]) == 1
    assert "has no edit.safetensors" in capsys.readouterr().err
