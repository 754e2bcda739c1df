"""docs/data.md: its spec renders, its commands parse, and it documents every key and every shipped subject."""

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
from lightning_neuralgate.data.scenes.draw import draw_scene
from lightning_neuralgate.data.scenes.spec import load_scene_spec
from lightning_neuralgate.gate.spans import find_subject

DOC = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def test_documented_spec_renders(tmp_path: Path) -> None:
    example, _ = blocks(DOC, "yaml")
    file = tmp_path / "library_card.yaml"
    file.write_text(example, encoding="utf-8")
    splits = render_splits(tmp_path / "out", 0, 1, 1, 2, 1, [file], ["drone"])
    assert [len(records) for records in splits] == [1, 1, 1, 1, 0]
    assert {pair.sensitive_attribute for pair in splits.edit[0].pairs} == {"library card number", "owner's name"}
    assert splits.unseen_attributes[0].pairs[0].sensitive_attribute == "date of birth"


def test_documented_place_is_drawn(tmp_path: Path) -> None:
    _, example = blocks(DOC, "yaml")
    file = tmp_path / "bathroom.yaml"
    file.write_text(example.replace("label.yaml", "bus"), encoding="utf-8")
    Image.new("RGB", (20, 30), "white").save(tmp_path / "towel.png")
    spec = load_scene_spec(file)
    scene = draw_scene(spec, 0, objects=["towel", "duck"], signs=spec.sign_specs[:1], documents=[])
    assert scene.shown() == {"towel", "duck", "price tag"}


@pytest.mark.parametrize(
    "command", [line.split("#")[0].strip() for block in blocks(DOC, "bash") for line in block.splitlines()]
)
def test_documented_commands_parse(command: str) -> None:
    program, *words = shlex.split(command)
    assert program == "neuralgate"
    assert build_parser(words[0]).parse_args(words).subcommand == words[0]


def test_documented_records_are_read(tmp_path: Path) -> None:
    line, entry = blocks(DOC, "json")
    for name in re.findall(r"images/[\w-]+\.png", line + entry):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "records.jsonl").write_text(line.replace("\n", " "), encoding="utf-8")
    (from_lines,) = read_records(tmp_path / "records.jsonl", tmp_path).edit
    (tmp_path / "authors.json").write_text(entry, encoding="utf-8")
    (from_authors,) = read_authors_json(tmp_path / "authors.json", tmp_path)
    assert [len(record.pairs) for record in (from_lines, from_authors)] == [1, 2]
    for record in (from_lines, from_authors):
        for pair in record.pairs:
            assert find_subject(pair.sensitive, record.subject)
            assert find_subject(pair.benign, record.subject)
    assert "What is the passport number of this passport?" in {pair.sensitive for pair in from_authors.pairs}


@pytest.mark.parametrize(
    "model",
    [
        PrivacyRecord, QueryPair,
        specs.SubjectSpec, specs.FieldSpec, specs.LayoutSpec, specs.VariationSpec, specs.TextElement, specs.ValueElement,
        specs.ShapeElement, specs.DecorationElement, specs.BlockElement, specs.PolygonElement,
    ],
)  # fmt: skip
def test_every_key_is_documented(model: type) -> None:
    documented = set(re.findall(r"`([a-z_]+)`", DOC))
    assert set(model.model_fields) <= documented  # type: ignore[attr-defined]


def test_every_subject_and_folder_is_documented() -> None:
    for name in shipped_subjects():
        assert f"docs/contact-sheets/{name}.png" in DOC
    for folder in SPLIT_FOLDERS.values():
        assert f"    {folder}/" in DOC
