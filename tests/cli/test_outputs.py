"""Outputs of commands: no input and no file of the user's own is overwritten or removed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from lightning_neuralgate.cli import main
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.gate.neural_gate import NeuralGate
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import random_gate

QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
STEPS = {
    "locate": ["--locator.layers", "[1]", "--locator.max_steps", "2"],
    "edit": ["--editor.layers", "[1]", "--editor.lr", "0.01", "--editor.max_new_tokens", "2"],
    "eval": ["--max_new_tokens", "2", "--cache", "false"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sizes = "--edit_records 1 --test_records 1 --edit_pairs 1 --test_pairs 1 --subjects [passport]"
    assert main(["render", "--out", str(folder), *sizes.split()]) == 0
    return folder


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "models" / "base"))


def command(name: str, model: Path, data: Path, out: Path) -> list[str]:
    return [name, "--model.name", str(model), "--data.folder", str(data), "--out", str(out), *STEPS[name], *QUIET]


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", STEPS)
def test_no_command_writes_into_its_inputs(
    name: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(model, target_is_directory=True)
    random_gate(tiny_llava()).save_pretrained(tmp_path / "gate")
    before = contents(tmp_path) | contents(data)
    for out in (model, tmp_path / "link", model.parent, model / "new"):
        assert main(command(name, model, data, out)) == 1
        assert "--model.name" in capsys.readouterr().err
    assert main(command(name, model, data, data)) == 1
    assert f"--out {data} is --data.folder {data}, which would be overwritten" in capsys.readouterr().err
    if name != "locate":
        assert main([*command(name, model, data, tmp_path / "gate"), "--gate", str(tmp_path / "gate")]) == 1
        assert "is --gate" in capsys.readouterr().err
    assert contents(tmp_path) | contents(data) == before


@pytest.mark.parametrize("name", STEPS)
def test_a_folder_of_the_users_own_that_is_called_unfinished_stays(
    name: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "papers"
    for folder in ("unfinished", ".unfinished.over"):
        (out / folder).mkdir(parents=True)
        (out / folder / "thesis.txt").write_text("mine")
    before = contents(out)
    assert main(command(name, model, data, out)) == 1
    assert f"{out / 'unfinished'} holds files that no run has written" in capsys.readouterr().err
    assert contents(out) == before
    shutil.rmtree(out / "unfinished")
    assert main(command(name, model, data, out)) == 0
    assert (out / ".unfinished.over" / "thesis.txt").exists()
    assert not (out / "unfinished").exists()


def test_an_edit_replaces_an_earlier_one_and_no_other_model(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    before = contents(other)
    assert main(command("edit", model, data, other)) == 1
    assert "would be replaced, but was not written by an earlier run" in capsys.readouterr().err
    assert contents(other) == before
    out, checksums = tmp_path / "edited", []
    for layer in (1, 2):
        assert main([*command("edit", model, data, out), "--editor.layers", f"[{layer}]"]) == 0
        checksums.append(WeightFiles(out).checksum)
    assert len(set(checksums)) == 2
    assert main([*command("edit", out, data, out)]) == 1, "an edited model into itself"
    capsys.readouterr()
    assert main([*command("edit", model, data, out), "--editor.lr", "0"]) == 0
    assert "THE EDIT CHANGED NO WEIGHT" in capsys.readouterr().out


def test_a_refused_edit_does_not_refuse_the_corrected_one(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = random_gate(tiny_llava(seed=1))
    gate.save_pretrained(tmp_path / "gate")
    out = tmp_path / "once"
    assert main([*command("edit", model, data, out), "--gate", str(tmp_path / "gate")]) == 1
    assert "located in another model" in capsys.readouterr().err
    assert not out.exists(), "a refused run leaves nothing"
    random_gate(tiny_llava()).save_pretrained(tmp_path / "gate")
    assert NeuralGate.from_pretrained(tmp_path / "gate").fingerprint != gate.fingerprint
    assert main([*command("edit", model, data, out), "--gate", str(tmp_path / "gate")]) == 0


def test_answers_that_no_run_has_written_stay(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "answers.jsonl").write_text("by hand")
    assert main(command("eval", model, data, tmp_path / "out")) == 1
    assert "answers.jsonl would be replaced, but no run has written it" in capsys.readouterr().err
    assert contents(tmp_path / "out").keys() == {"answers.jsonl"}


def test_sheets_and_edit_files_replace_nothing_of_the_users_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "passport.png").write_text("my photo")
    assert main(["render", "--contact_sheets", str(photos)]) == 1
    assert "passport.png would be replaced" in capsys.readouterr().err
    assert [path.name for path in photos.iterdir()] == ["passport.png"]
    before = contents(model)
    arguments = ["--base", str(model), "--edited", str(model), "--out", str(model / "model.safetensors")]
    assert main(["diff", *arguments]) == 1
    assert "is not an edit delta" in capsys.readouterr().err
    assert contents(model) == before
