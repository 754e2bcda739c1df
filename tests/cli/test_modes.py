"""`neuralgate eval`: options that would change nothing, and values that cannot be, are refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_neuralgate.cli import main
from lightning_neuralgate.models import loading


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr("lightning_neuralgate.cli.options.load_model", load)


def refused(words: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said about words that are refused."""
    try:
        code = main(["eval", "--out", str(out), *words])
    except SystemExit as over:  # the parser's own way
        code = int(over.code or 0)
    assert code in (1, 2)
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert not out.is_dir(), "nothing was written"
    return told


@pytest.mark.parametrize(
    "words",
    [
        ["--limit", "4"],
        ["--mini"],
        ["--mini_seed", "3"],
        ["--and", "other"],
        ["--delta", "edit.safetensors"],
        ["--gate", "gate"],
        ["--broken", "skip"],
        ["--cache", "false"],
        ["--num_workers", "2"],
        ["--judge.kind", "reader"],
        ["--judge.guard", "true"],
        ["--sources.pope", "pope"],
        ["--trainer.devices", "2"],
        ["--trainer.fast_dev_run", "true"],
    ],
)
def test_options_of_benchmarks_need_tasks(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(["--data.folder", "data", *words], tmp_path / "out", capsys)
    assert told == (
        f"neuralgate eval: {words[0]} would change nothing: of benchmarks alone, which --tasks names; name them, or leave it "
        "out\n"
    )


def test_an_option_in_a_configuration_file_is_refused_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "eval.yaml"
    file.write_text("limit: 4\njudge:\n  kind: reader\n")
    assert "--judge.kind, --limit would change nothing" in refused(["--config", str(file)], tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--tasks", "pope", "--until_decided", "true"], "--until_decided is for refusal rates alone, without --tasks"),
        (["--tasks", "pope", "--data.folder", "d"], "--data.folder would change nothing: it says where 'privacy_pair' is"),
        (["--tasks", "mme", "--sources.pope_images", "p"], "--sources.pope_images would change nothing: it says where"),
        (["--tasks", "mme", "--mini", "--sources.mme", "m"], "--sources.mme would change nothing: --mini asks drawn sets"),
        (["--tasks", "all", "--mini", "--data.folder", "d"], "--data.folder would change nothing: --mini asks drawn sets"),
        (["--tasks", "pope", "--mini_seed", "1"], "--mini_seed would change nothing: it is the seed"),
    ],
)  # fmt: skip
def test_options_that_change_nothing_with_tasks(
    words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refused(words, tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tasks", "pope", "--limit", "-1"], "limit"),
        (["--tasks", "pope", "--limit", "0"], "limit"),
        (["--tasks", "pope", "--batch_size", "0"], "batch_size"),
        (["--batch_size", "-3"], "batch_size"),
        (["--max_new_tokens", "0"], "max_new_tokens"),
        (["--tasks", "pope", "--num_workers", "-1"], "num_workers"),
        (["--tasks", "pop"], "there is no task 'pop'; there are privacy_pair"),
        (["--tasks", ""], "name the tasks: privacy_pair"),
        (["--tasks", " , "], "name the tasks: privacy_pair"),
    ],
)
def test_values_that_cannot_be(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(words, tmp_path / "out", capsys)


@pytest.mark.parametrize("below", ["", "folder/run"])
def test_an_output_folder_that_is_a_file(below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    told = refused(["--tasks", "pope", "--mini"], file / below, capsys)
    assert told == f"neuralgate eval: --out {file / below}: {file} is a file; name a folder\n"
    for words in (["score", str(tmp_path), "--export", str(file)], ["compare", "a", "b", "--out", str(file)]):
        assert main(words) == 1
        assert f"{file} is a file; name a folder" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_broken_questions_are_told_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pope.jsonl"
    file.write_text("{\n")
    words = ["--tasks", "pope", "--sources.pope", str(file), "--trainer.accelerator", "cpu"]
    assert f"{file}, line 1: not JSON" in refused(words, tmp_path / "out", capsys)
