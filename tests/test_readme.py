"""What the README shows works: its commands parse, its code runs (on a tiny checkpoint)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_neuralgate.cli import SUBCOMMANDS, build_parser
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_llava import tiny_llava, tiny_processor, tiny_splits
from tests.helpers.training import UserModule, datamodule, random_gate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [
    line.split("#")[0].strip()
    for block in blocks("bash")
    for line in block.splitlines()
    if line.startswith("neuralgate")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_understood(command: str) -> None:
    words = shlex.split(command)[1:]
    assert build_parser(words[0]).parse_args(words).subcommand == words[0]


def test_it_shows_the_main_commands() -> None:
    shown = {shlex.split(command)[1] for command in COMMANDS}
    assert shown >= set(SUBCOMMANDS) - {"demo"}
    for command in ("make demo", "make test", "recipes/llava_privacy.py --config recipes/llava_privacy.yaml"):
        assert command in README


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llava().save_pretrained(tmp_path / "tiny")
    tiny_processor().save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    locate, edit = (block for block in blocks("python") if "layers=[10]" in block)
    quiet = (
        "accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=1, "
    )
    names: dict[str, Any] = {}
    for code in (locate, edit):
        for shown, here in (("smol-llava", str(tmp_path / "tiny")), ("[10]", "[1]"), ("Trainer(", f"Trainer({quiet}")):
            code = code.replace(shown, here)
        code = re.sub(r"max_epochs=\d+", "max_epochs=1", code)
        code = code.replace("layers=[1])", "layers=[1], max_steps=1)").replace("seed=0)", "seed=0, edit_records=1)")
        exec(code, names)
    assert (tmp_path / "gate" / "gate.json").is_file()
    assert (tmp_path / "edited" / "config.json").is_file()


def test_no_link_or_file_it_names_is_missing() -> None:
    for path in re.findall(r"`((?:recipes|tests|docs)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path


def test_the_page_on_trainers_shows_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "trainer.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"```diff\n(.*?)```", page, flags=re.DOTALL)
    code = "".join(line[2:] + "\n" for line in diff.splitlines())
    assert sum(line.startswith("+") for line in diff.splitlines()) == 2
    monkeypatch.chdir(tmp_path)
    model = tiny_llava()
    random_gate(model).save_pretrained("gate")
    weight: Any = find_decoder(model).output_projection(1).weight
    before = weight.detach().clone()
    batches = datamodule(tiny_splits(tmp_path), pairs_per_batch=2).pairs_dataloader()
    quiet = "accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False, "
    for shown, here in (
        ('strategy="ddp"', "strategy='auto'"),
        ("devices=2", "devices=1"),
        ("Trainer(\n", f"Trainer({quiet}\n"),
    ):
        assert shown in code
        code = code.replace(shown, here)
    exec(
        code,
        {"YourModule": UserModule, "model": model, "processor": tiny_processor(), "your_dataloader": batches},
    )
    assert not torch.equal(weight, before)
