"""What docs/data.md shows works: its spec is drawn, its commands parse, it names every key and every shipped subject."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from lightning_neuralgate.cli import build_parser
from lightning_neuralgate.data.authors import read_authors_json
from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, read_records
from lightning_neuralgate.data.rendering import spec as specs
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.data.rendering.imagefolder import SPLIT_FOLDERS
from lightning_neuralgate.data.rendering.spec import shipped_subjects
from lightning_neuralgate.gate.spans import find_subject

DOC = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC, flags=re.DOTALL)


def test_its_spec_is_drawn(tmp_path: Path) -> None:
    (example,) = blocks("yaml")
    file = tmp_path / "library_card.yaml"
    file.write_text(example, encoding="utf-8")
    splits = render_splits(tmp_path / "out", 0, 1, 1, 2, 1, [file], ["drone"])
    assert [len(records) for records in splits] == [1, 1, 1, 1]
    assert {pair.sensitive_attribute for pair in splits.edit[0].pairs} == {"library card number", "owner's name"}
    assert splits.unseen_attributes[0].pairs[0].sensitive_attribute == "date of birth"


@pytest.mark.parametrize(
    "command", [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
)
def test_its_commands_are_understood(command: str) -> None:
    program, *words = shlex.split(command)
    assert program == "neuralgate"
    assert build_parser(words[0]).parse_args(words).subcommand == words[0]


def test_its_records_are_read(tmp_path: Path) -> None:
    record, entry = blocks("json")
    for name in re.findall(r"images/[\w-]+\.png", record + entry):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "records.jsonl").write_text(record.replace("\n", " "), encoding="utf-8")
    (mine,) = read_records(tmp_path / "records.jsonl", tmp_path).edit
    (tmp_path / "theirs.json").write_text(entry, encoding="utf-8")
    (theirs,) = read_authors_json(tmp_path / "theirs.json", tmp_path)
    assert [len(one.pairs) for one in (mine, theirs)] == [1, 2]
    for one in (mine, theirs):
        for pair in one.pairs:
            assert find_subject(pair.sensitive, one.subject)
            assert find_subject(pair.benign, one.subject)
    assert "What is the passport number of this passport?" in {pair.sensitive for pair in theirs.pairs}


@pytest.mark.parametrize(
    "model",
    [
        PrivacyRecord, QueryPair,
        specs.SubjectSpec, specs.FieldSpec, specs.LayoutSpec, specs.VariationSpec, specs.TextElement, specs.ValueElement,
        specs.ShapeElement, specs.PlainElement, specs.BlockElement, specs.PolygonElement,
    ],
)  # fmt: skip
def test_it_names_every_key(model: type) -> None:
    named = set(re.findall(r"`([a-z_]+)`", DOC))
    assert set(model.model_fields) <= named  # type: ignore[attr-defined]


def test_it_names_every_subject_and_folder() -> None:
    for name in shipped_subjects():
        assert f"docs/contact-sheets/{name}.png" in DOC
    for folder in SPLIT_FOLDERS.values():
        assert f"    {folder}/" in DOC
