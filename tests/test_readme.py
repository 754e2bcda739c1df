"""The README and the command reference: commands parse, code runs on a tiny checkpoint, links lead somewhere."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_neuralgate.cli import SUBCOMMANDS, build_parser
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_llava import tiny_llava, tiny_processor, tiny_splits
from tests.helpers.training import UserModule, datamodule, random_gate

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
QUIET = "accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False, "


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", read_page(page), flags=re.DOTALL)


def shown_commands(page: str, program: str) -> list[str]:
    lines = (line for block in code_blocks(page, "bash") for line in block.splitlines())
    return [line.split(" # ")[0].strip() for line in lines if line.startswith(program)]


@pytest.mark.parametrize(
    "command", [*shown_commands("README.md", "neuralgate"), *shown_commands("docs/cli.md", "neuralgate")]
)
def test_shown_commands_parse(command: str) -> None:
    words = shlex.split(command)[1:]
    assert build_parser(words[0]).parse_args(words).subcommand == words[0]


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_pages_show_every_subcommand(page: str) -> None:
    assert {shlex.split(command)[1] for command in shown_commands(page, "neuralgate")} == set(SUBCOMMANDS)


def command_sections() -> dict[str, str]:
    """Sections of the command reference that are about one command."""
    sections = re.split(r"^## (.+)$", read_page("docs/cli.md"), flags=re.MULTILINE)[1:]
    return {name: text for name, text in zip(sections[::2], sections[1::2], strict=True) if name in SUBCOMMANDS}


@pytest.mark.parametrize("name", command_sections())
def test_command_reference_names_existing_options(name: str) -> None:
    known = subcommand_help(name)
    for option in re.findall(r"`(--[\w.-]+)", command_sections()[name]):
        assert option in known, option


def subcommand_help(name: str) -> str:
    """The help of a subcommand, which lists every option."""
    with pytest.raises(SystemExit), redirect_stdout(io.StringIO()) as output:
        build_parser(name).parse_args([name, "--help"])
    return output.getvalue()


def test_readme_is_short_and_shows_the_make_targets() -> None:
    readme = read_page("README.md")
    assert len(readme.splitlines()) <= 130
    assert "make demo" in readme
    assert "make test" in readme


def test_recipe_commands_name_existing_files() -> None:
    commands = [*shown_commands("docs/cli.md", "python"), *shown_commands("docs/cli.md", "torchrun")]
    assert commands
    for command in commands:
        files = re.findall(r"recipes/[\w.]+", command)
        assert files
        for file in files:
            assert (ROOT / file).is_file(), f"{command}: {file}"


def test_python_api_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llava().save_pretrained(tmp_path / "tiny")
    tiny_processor().save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in code_blocks("README.md", "python") if "layers=[10]" in block)
    for shown, small in (
        ("smol-llava", str(tmp_path / "tiny")),
        ("layers=[10])", "layers=[1], max_steps=1)"),
        ("layers=[10]", "layers=[1]"),
        ("seed=0)", "seed=0, edit_records=1)"),
        ("max_epochs=3", "max_epochs=1"),
        ("Trainer(", f"Trainer({QUIET}limit_val_batches=1, "),
    ):
        assert shown in code
        code = code.replace(shown, small)
    exec(code, {})
    assert (tmp_path / "gate" / "gate.json").is_file()
    assert (tmp_path / "edited" / "config.json").is_file()


def trainer_page_code() -> str:
    (diff,) = code_blocks("docs/trainer.md", "diff")
    assert sum(line.startswith("+") for line in diff.splitlines()) == 2
    return "".join(line[2:] + "\n" for line in diff.splitlines())


def readme_callback_code() -> str:
    (code,) = (block for block in code_blocks("README.md", "python") if "your_module" in block)
    return code


@pytest.mark.parametrize("code", [trainer_page_code(), readme_callback_code()], ids=["trainer page", "readme"])
def test_callback_code_trains_a_foreign_module(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_llava()
    random_gate(model).save_pretrained("gate")
    weight: Any = find_decoder(model).output_projection(1).weight
    before = weight.detach().clone()
    batches = datamodule(tiny_splits(tmp_path), pairs_per_batch=2).pairs_dataloader()
    code = code.replace('strategy="ddp"', "strategy='auto'").replace("devices=2", "devices=1")
    assert "Trainer(\n" in code
    code = code.replace("Trainer(\n", f"Trainer({QUIET}\n").replace("max_epochs=3", "max_epochs=1")
    module = UserModule(model)
    names = {"YourModule": UserModule, "your_module": module, "model": model, "your_dataloader": batches}
    exec(code, {**names, "processor": tiny_processor()})
    assert not torch.equal(weight, before)


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'(?:src|srcset)="([^"]+)"', text)]
    for link in links:
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    for path in re.findall(r"`((?:recipes|tests|docs|benchmarks)/[\w./-]+)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path
