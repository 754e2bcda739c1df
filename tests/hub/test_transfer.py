"""Pushing to and pulling from a stand-in of the hub, through huggingface_hub's own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from lightning_neuralgate.cli import main
from lightning_neuralgate.edit.delta import DELTA_NAME, EditDelta
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.gate.columns import ColumnGate
from lightning_neuralgate.gate.neural_gate import NeuralGate
from tests.demo.report.data import run
from tests.helpers.hub_server import TOKEN, Hub, serve_hub
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import random_gate

REPO = "someone/edited-model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose uploads go past HTTP
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def edited(pair: Path, tmp_path: Path) -> Path:
    """An edited model with its edit file, and files that are not to be uploaded."""
    folder = tmp_path / "run" / "edited"
    EditDelta.between(pair / "base", pair / "edited", {"seed": "3"}).apply(pair / "base", folder)
    EditDelta.between(pair / "base", pair / "edited", {"seed": "3"}).save(folder / DELTA_NAME)
    for name in (
        "pytorch_model_old.bin",
        "modeling.py",
        "unfinished/last.ckpt",
        "data/records.jsonl",
        ".neuralgate.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not for the hub")
    return folder


def push(source: Path, *options: str, repo: str = REPO) -> int:
    return main(["push", str(source), repo, *options])


def test_a_model_is_pushed_and_pulled(
    hub: Hub, edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (edited.parent / "results.json").write_text(json.dumps(run()))
    assert push(edited) == 0
    printed = capsys.readouterr().out
    assert (
        "not uploaded: .neuralgate.json, data/records.jsonl, modeling.py, pytorch_model_old.bin, unfinished/" in printed
    )
    assert f"figures of the model card: {edited.parent / 'results.json'}" in printed
    assert f"uploaded to {hub.url}/{REPO}, commit {hub.commit(REPO)}" in printed
    uploaded = hub.repos[REPO]
    assert {"config.json", "model.safetensors", "tokenizer.json", DELTA_NAME, "README.md", "reproduce.json"} <= set(
        uploaded
    )
    assert not [name for name in uploaded if name.endswith((".bin", ".py", ".ckpt", ".jsonl")) or "neuralgate" in name]
    assert hub.private == {REPO}
    assert b"The gated edit worked on the test split" in uploaded["README.md"]

    assert main(["pull", REPO, "--out", str(tmp_path / "pulled")]) == 0
    printed = capsys.readouterr().out
    assert f"model of '{REPO}', commit {hub.commit(REPO)}: " in printed
    assert "checksums verified" in printed
    assert WeightFiles(tmp_path / "pulled").checksum == WeightFiles(edited).checksum
    assert {file.name for file in (tmp_path / "pulled").iterdir()} == set(uploaded) - {".gitattributes"}
    assert TOKEN not in printed
    assert not list(tmp_path.rglob("*push-*"))


def test_a_second_push_replaces_the_first(hub: Hub, edited: Path, pair: Path, tmp_path: Path) -> None:
    assert push(edited) == 0
    assert push(edited / DELTA_NAME, "--base_model", "smol-llava") == 0
    assert set(hub.repos[REPO]) == {".gitattributes", "README.md", "reproduce.json", DELTA_NAME}
    assert main(["pull", REPO, "--out", str(tmp_path / "edit")]) == 0
    EditDelta.load(tmp_path / "edit" / DELTA_NAME).apply(pair / "base", tmp_path / "made")
    assert WeightFiles(tmp_path / "made").checksum == WeightFiles(edited).checksum


def test_a_gate_is_pushed_and_pulled(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = random_gate(tiny_llava())
    gate.save_pretrained(tmp_path / "gate")
    columns = ColumnGate({1: torch.ones(48)}, gate.model, queries=4)
    columns.save_pretrained(tmp_path / "gate")
    assert push(tmp_path / "gate", "--private", "false") == 0
    assert hub.private == set()
    assert main(["pull", REPO, "--out", str(tmp_path / "pulled")]) == 0
    assert "edit with it: neuralgate edit" in capsys.readouterr().out
    assert NeuralGate.from_pretrained(tmp_path / "pulled").fingerprint == gate.fingerprint
    assert ColumnGate.from_pretrained(tmp_path / "pulled").fingerprint == columns.fingerprint
    assert b"--editor.layers '[1]' --gate gate" in hub.repos[REPO]["README.md"]


def test_changes_on_the_hub_are_found(
    hub: Hub, edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(edited) == 0
    intact = dict(hub.repos[REPO])
    weights = bytearray(intact["model.safetensors"])
    weights[-1] ^= 1
    record = json.loads(intact["reproduce.json"])
    record["files"]["model/../../evil.safetensors"] = "0"
    other = {**json.loads(intact["reproduce.json"]), "checksums": {"weights": "0"}}
    for changed, message in (
        ({"model.safetensors": bytes(weights)}, "model.safetensors has another checksum than reproduce.json of"),
        ({"tokenizer.json": None}, f"the hub repository '{REPO}' lacks tokenizer.json, which its reproduce.json lists"),
        ({"reproduce.json": None}, "has no reproduce.json, so `neuralgate push` has not written it"),
        ({"reproduce.json": b"{}"}, "format_version is None"),
        ({"reproduce.json": json.dumps(record).encode()}, "'model/../../evil.safetensors' is no file that is shared"),
        ({"reproduce.json": json.dumps(other).encode()}, "is not the one that its reproduce.json describes"),
    ):
        hub.repos[REPO] = {name: content for name, content in {**intact, **changed}.items() if content is not None}
        capsys.readouterr()
        assert main(["pull", REPO, "--out", str(tmp_path / "pulled")]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "pulled").exists()


def test_a_dry_run_writes_the_folder_and_sends_nothing(
    hub: Hub, edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(edited, "--dry_run", "true") == 1
    assert "give --out FOLDER to write what would be uploaded" in capsys.readouterr().err
    assert push(edited, "--dry_run", "true", "--out", str(tmp_path / "upload")) == 0
    assert "nothing was uploaded" in capsys.readouterr().out
    assert hub.requests == []
    record = json.loads((tmp_path / "upload" / "reproduce.json").read_text())
    assert set(record["files"]) == {file.name for file in (tmp_path / "upload").iterdir()} - {
        "README.md",
        "reproduce.json",
    }
    assert record["checksums"]["weights"] == record["checksums"]["edited"] == WeightFiles(edited).checksum
    assert push(edited, "--dry_run", "true", "--out", str(tmp_path / "upload")) == 1
    assert "upload exists; give a new folder" in capsys.readouterr().err


def test_files_of_others_on_the_hub_stay(hub: Hub, edited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repos[REPO] = {".gitattributes": b"", "weights.bin": b"mine"}
    assert push(edited) == 1
    assert "holds files that no `neuralgate push` has written, such as weights.bin" in capsys.readouterr().err
    assert hub.repos[REPO] == {".gitattributes": b"", "weights.bin": b"mine"}


@pytest.mark.parametrize("repo", ["edited-model", "a/b/c", "../x", "some one/model"])
def test_names_of_repositories_are_checked(
    hub: Hub, edited: Path, repo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(edited, repo=repo) == 1
    assert main(["pull", repo, "--out", "pulled"]) == 1
    assert capsys.readouterr().err.count("USER/NAME") == 2
    assert hub.requests == []


def test_the_token_is_in_no_message(
    hub: Hub, edited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")  # it is in the file of `hf auth login` instead
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for status, way_out in ((403, "use a token that may write"), (401, "hf auth login"), (400, "check the network")):
        hub.problem = (status, json.dumps({"error": f"refused: {TOKEN}"}).encode())
        assert push(edited) == 1
        printed = capsys.readouterr()
        assert way_out in printed.err
        assert f"uploading to '{REPO}' failed" in printed.err
        assert TOKEN not in printed.out + printed.err


def test_weights_without_their_edit_file_are_refused(
    hub: Hub, edited: Path, pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (edited / "model.safetensors").write_bytes((pair / "base" / "model.safetensors").read_bytes())
    assert push(edited) == 1
    assert f"{edited / DELTA_NAME} belongs to other weights" in capsys.readouterr().err
    assert push(edited / "data") == 1
    assert "is no folder with an edited model (config.json), a gate (gate.json) or an edit" in capsys.readouterr().err


def test_the_endpoint_is_that_of_the_environment(edited: Path, tmp_path: Path) -> None:
    with serve_hub() as hub:
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        for words in (["push", str(edited / DELTA_NAME), REPO], ["pull", REPO, "--out", str(tmp_path / "pulled")]):
            done = subprocess.run(
                [sys.executable, "-m", "lightning_neuralgate.cli", *words],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert TOKEN not in done.stdout + done.stderr
    assert (tmp_path / "pulled" / DELTA_NAME).read_bytes() == (edited / DELTA_NAME).read_bytes()
