"""`neuralgate eval`: options that would change nothing, and values that cannot be, are refused before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_neuralgate.cli import main
from lightning_neuralgate.models import loading

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr("lightning_neuralgate.cli.options.load_model", load)


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Function from the words of a command that is refused to its error message."""

    def error_message(*words: str, out: Path = tmp_path / "out") -> str:
        try:
            code = main(["eval", "--out", str(out), *words])
        except SystemExit as over:  # the parser's own way
            code = int(over.code or 0)
        assert code in (1, 2)
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        assert not out.is_dir(), "nothing was written"
        return printed

    return error_message


@pytest.mark.parametrize(
    "words",
    [
        ["--limit", "4"],
        ["--broken", "skip"],
        ["--cache", "false"],
        ["--num_workers", "2"],
        ["--judge.unparsed", "error"],
        ["--until_decided", "true"],
        ["--and", "other"],
    ],
)
def test_without_tasks_privacy_pair_is_evaluated_with_all_options(words: list[str], refused: Refused) -> None:
    printed = refused(*words, *QUIET)
    assert printed == "neuralgate eval: name the data: either --data.folder, or --data.files with --data.image_root\n"


def test_an_option_in_a_configuration_file_is_refused_as_well(tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "eval.yaml"
    file.write_text("limit: 4\nsources:\n  pope: folder\n")
    printed = refused("--config", str(file))
    assert "--sources.pope would change nothing: it says where 'pope' is, which is not among --tasks" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "pope", "--until_decided", "true"], "--until_decided is for the refusal rates of privacy_pair"),
        (["--until_decided", "true", "--judge.kind", "reader"], "other tasks and judges need complete answers: leave it"),
        (["--sources.pope", "p"], "--sources.pope would change nothing: it says where 'pope' is"),
        (["--mini_seed", "3"], "--mini_seed would change nothing: it is the seed"),
        (["--judge.guard", "true"], "--judge.guard would change nothing: it scores mllmguard"),
        (["--tasks", "pope", "--data.folder", "d"], "--data.folder would change nothing: it says where 'privacy_pair' is"),
        (["--tasks", "mme", "--sources.pope_images", "p"], "--sources.pope_images would change nothing: it says where"),
        (["--tasks", "mme", "--mini", "--sources.mme", "m"], "--sources.mme would change nothing: --mini draws"),
        (["--tasks", "all", "--mini", "--data.folder", "d"], "--data.folder would change nothing: --mini draws"),
        (["--tasks", "pope", "--mini_seed", "1"], "--mini_seed would change nothing: it is the seed"),
        (["--tasks", "pope", "--limit", "-1"], "limit"),
        (["--tasks", "pope", "--limit", "0"], "limit"),
        (["--tasks", "pope", "--batch_size", "0"], "batch_size"),
        (["--batch_size", "-3"], "batch_size"),
        (["--max_new_tokens", "0"], "max_new_tokens"),
        (["--tasks", "pope", "--num_workers", "-1"], "num_workers"),
        (["--tasks", "pop"], "there is no task 'pop'; there are privacy_pair"),
        (["--tasks", ""], "--tasks is empty; was a shell variable not set?"),
        (["--tasks", " , "], "name the tasks: privacy_pair"),
    ],
)  # fmt: skip
def test_invalid_values_and_options_that_change_nothing_are_refused(
    words: list[str], message: str, refused: Refused
) -> None:
    assert message in refused(*words)


@pytest.mark.parametrize("below", ["", "folder/run"])
def test_an_output_folder_that_is_a_file_is_refused(
    below: str, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    printed = refused("--tasks", "pope", "--mini", out=file / below)
    assert printed == f"neuralgate eval: --out {file / below}: {file} is a file; name a folder\n"
    for words in (["score", str(tmp_path), "--export", str(file)], ["compare", "a", "b", "--out", str(file)]):
        assert main(words) == 1
        assert f"{file} is a file; name a folder" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_broken_questions_are_reported_before_a_model_is_loaded(tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "pope.jsonl"
    file.write_text("{\n")
    message = refused("--tasks", "pope", "--sources.pope", str(file), "--trainer.accelerator", "cpu")
    assert f"{file}, line 1: not JSON" in message
