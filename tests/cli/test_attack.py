"""`neuralgate attack` on tiny models and a user's own records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_neuralgate.cli import main
from lightning_neuralgate.data.records import RECORDS_NAME, write_records
from tests.helpers.tiny_llava import save_tiny_llava, tiny_llava, tiny_processor, tiny_splits

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
ATTACKS = "plain,prefill_3,describe,truth_rank,rounded_int4,sampled_16,crop_medium"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unedited and an edited model, and records."""
    folder = tmp_path_factory.mktemp("attack")
    (folder / "data").mkdir()
    splits = tiny_splits(folder / "data", records=1)
    write_records(folder / "data" / RECORDS_NAME, splits, folder / "data")
    save_tiny_llava(folder / "base")
    model = tiny_llava()
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.down_proj.weight.mul_(1.5)
    model.save_pretrained(folder / "edited")
    tiny_processor().save_pretrained(folder / "edited")
    return folder


def attack(folder: Path, out: Path, *words: str) -> int:
    models = ["--model", str(folder / "edited"), "--data.folder", str(folder / "data")]
    return main(["attack", "--out", str(out), *models, *QUIET, *words])


def test_both_models_are_attacked_and_scored(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attack(folder, tmp_path, "--beside", str(folder / "base"), "--attacks", ATTACKS, "--secrets", "4") == 0
    results = json.loads((tmp_path / "attacks.json").read_text())
    assert results["questions"] == {"sensitive": 4, "benign": 2, "records": 2}
    scores = {score["attack"]: score for score in results["attacks"]}
    assert set(scores) == {*ATTACKS.split(","), "any of them"}
    for name in ("plain", "prefill_3", "describe", "rounded_int4", "sampled_16", "crop_medium"):
        assert {"edited/leak", "unedited/leak", "edited/refused"} <= scores[name]["figures"].keys(), name
        assert scores[name]["secrets"] == (2 if name == "sampled_16" else 4)
    assert 0 <= scores["truth_rank"]["figures"]["edited/auc"] <= 1
    assert "any of them" in capsys.readouterr().out
    assert (tmp_path / "attacks.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attacks.html",
        "attacks.json",
        "edited",
        "pictures",
        "unedited",
    ]
    assert not list(tmp_path.rglob("unfinished"))


def test_without_an_unedited_model_there_is_no_recovered_share(folder: Path, tmp_path: Path) -> None:
    assert attack(folder, tmp_path, "--attacks", "prefill_3", "--secrets", "2") == 0
    for score in json.loads((tmp_path / "attacks.json").read_text())["attacks"]:
        assert not [name for name in score["figures"] if "unedited" in name or name == "recovered"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attacks", "plain,begging"], "there is no attack 'begging'"),
        (["--subjects", '["passport"]'], "--subjects is for a drawn set"),
        (["--beside", "EDITED"], "--beside is the same model as --model"),
        (["--out", "DATA/out"], "lies in --data.folder"),
    ],
)
def test_options_that_cannot_work_are_refused_first(
    words: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = [word.replace("EDITED", str(folder / "edited")).replace("DATA", str(folder / "data")) for word in words]
    assert attack(folder, tmp_path / "out", *replaced) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
