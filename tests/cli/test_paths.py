"""Paths in options mean what they mean in a shell, and text from outside is printed harmlessly."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from lightning_neuralgate.cli import main
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.paths import expand_path, expand_paths
from lightning_neuralgate.cli.render import _parse_paths
from lightning_neuralgate.cli.tables import print_rates
from lightning_neuralgate.errors import DataFormatError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.mark.parametrize("path", ["~/sheets", "$HOME/sheets", "${HOME}/sheets"])
@pytest.mark.parametrize("way", ["=", "word", "yaml"])
def test_a_home_folder_is_expanded_in_every_option(home: Path, path: str, way: str) -> None:
    Path("options.yaml").write_text(f"contact_sheets: {path}\nsubject_spec: ['~/none.yaml']\n")
    words = {
        "=": [f"--contact_sheets={path}"],
        "word": ["--contact_sheets", path],
        "yaml": ["--config", "options.yaml"],
    }
    parser = ArgumentParser()
    from lightning_neuralgate.cli.render import add_arguments

    add_arguments(parser)
    options = expand_paths(parser.parse_args(words[way]))
    assert options.contact_sheets == home / "sheets"


def test_paths_in_lists_and_groups_are_expanded(home: Path) -> None:
    parser = ArgumentParser()
    parser.add_argument("--model.name", type=str)
    parser.add_argument("--files", type=list[Path])
    options = expand_paths(parser.parse_args(["--model.name=~/model", "--files=[~/a, b~]"]))
    assert options.model.name == str(home / "model")
    assert options.files == [home / "a", Path("b~")]
    assert _parse_paths("[~/a.yaml, b.yaml]") == [str(home / "a.yaml"), "b.yaml"]


def test_other_variables_are_refused_and_never_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS", "/secret")
    for path in ("$RUNS/a", "${RUNS}", "$HF_TOKEN/model"):
        with pytest.raises(DataFormatError, match=r"begins with a variable, which is not replaced here") as raised:
            expand_path(path)
        assert "secret" not in str(raised.value)
    Path("$RUNS").mkdir()
    assert expand_path("$RUNS") == "$RUNS"
    with pytest.raises(DataFormatError, match="home folder of '~no-such-user/a' is unknown"):
        expand_path("~no-such-user/a")


@pytest.mark.parametrize("words", [["--out="], ["--out", ""]])
def test_an_empty_option_is_refused(words: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", *words]) == 1
    assert "--out is empty; was a shell variable not set?" in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_printed_text_cannot_control_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-1234")
    show("broken.jsonl, line 2: \x1b]0;owned\x07 \u202e sk-secret-1234")
    print_rates({"[bold red]model\x1b[2J": {"test": {"eta": 0.5}}}, title="[link=http://x]\x1b[31mtitle")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert "sk-secret" not in printed
    assert "[bold red]model\\x1b[2J" in printed
    assert "[link=http://x]\\x1b[31mtitle" in printed
