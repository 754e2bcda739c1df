"""Every reader of JSON and YAML accepts and refuses the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.cli.render import _parse_paths
from lightning_neuralgate.data.authors import read_authors_json
from lightning_neuralgate.data.records import read_records, read_retention, resolve_inside
from lightning_neuralgate.data.rendering.spec import SUBJECTS_FOLDER, load_subject_spec
from lightning_neuralgate.data.scenes.spec import PLACES_FOLDER, SIGNS_FOLDER, load_scene_spec, load_sign_spec
from lightning_neuralgate.errors import DataFormatError, NeuralGateError
from lightning_neuralgate.evaluation.answers import read_answers
from lightning_neuralgate.runtime.parsing import parse_json, read_json, read_yaml
from lightning_neuralgate.tasks.item import BrokenItems
from lightning_neuralgate.tasks.sources import read_json_lines
from tests.helpers.task_files import picture

ROW = {"query": "What?", "image": "a.png"}
PAIR = {"sensitive": "The number?", "benign": "The colour?", "refusal": "I cannot"}
RECORD = {"split": "edit", "record_id": "a", "subject": "passport", "image": "a.png", "pairs": [PAIR]}
CASE = {
    "case_id": 1, "image": "a.png", "paraphrase_prompts": ["The number?"], "neighborhood_prompts": ["The colour?"],
    "requested_rewrite": {"prompt": "Number of {}?", "target_new": {"str": "I cannot"}, "subject": "passport"},
}  # fmt: skip
ANSWER = {
    "task": "privacy_pair", "item_id": "a", "image": "a.png", "prompt": "What?", "truth": "x", "fields": {}, "answer": "b"
}  # fmt: skip

LINES: dict[str, tuple[dict[str, Any], Callable[[Path], Any]]] = {
    "records": (RECORD, lambda file: read_records(file, file.parent)),
    "retention": (ROW, lambda file: read_retention(file, file.parent)),
    "tasks": (ROW, lambda file: list(read_json_lines(file, BrokenItems()))),
}
UNREADABLE = {
    "NaN": "NaN is not a JSON number",
    "1e999": "is too large",
    "9" * 5000: "has 5000 digits",
    "[" * 5000: "nested more than 64 deep",
    "[" * 70 + "]" * 70: "nested more than 64 deep",
    '"\\ud800"': "half a surrogate pair",
    "{": "not JSON",
    '{"a": 1, "a": 2}': "the key 'a' is given twice",
}


@pytest.fixture(autouse=True)
def _picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")


@pytest.mark.parametrize("reader", LINES)
@pytest.mark.parametrize("value", UNREADABLE)
def test_unreadable_lines_are_refused_with_file_and_line(tmp_path: Path, reader: str, value: str) -> None:
    row, read = LINES[reader]
    file = tmp_path / "a.jsonl"
    file.write_text(f'{json.dumps(row)}\n{json.dumps(row)[:-1]}, "more": {value}}}\n')
    with pytest.raises(DataFormatError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}, line 2: ")
    assert UNREADABLE[value] in str(caught.value)


@pytest.mark.parametrize("reader", LINES)
def test_byte_order_marks_and_windows_line_ends_are_read(tmp_path: Path, reader: str) -> None:
    row, read = LINES[reader]
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r\n\r\n")
    assert read(file)


@pytest.mark.parametrize("reader", LINES)
def test_other_encodings_are_refused_by_name(tmp_path: Path, reader: str) -> None:
    row, read = LINES[reader]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row), encoding="utf-16")
    with pytest.raises(DataFormatError, match=r"a\.jsonl, line 1: not UTF-8 but UTF-16"):
        read(file)
    file.write_bytes(json.dumps(row).encode() + b'\n{"query": "\xff"}\n')
    with pytest.raises(DataFormatError, match=r"a\.jsonl, line 2: not UTF-8"):
        read(file)


@pytest.mark.parametrize("value", UNREADABLE)
def test_the_authors_files_are_refused_with_file_and_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.json").write_text(f'[\n{json.dumps(CASE)[:-1]}, "more": {value}}}\n]')
    with pytest.raises(DataFormatError, match=r"a\.json(, line [23])?: not JSON"):
        read_authors_json(tmp_path / "a.json", tmp_path)


def test_the_authors_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([CASE]), encoding="utf-8-sig")
    assert len(read_authors_json(tmp_path / "a.json", tmp_path)) == 1


def test_an_empty_query_names_file_and_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([CASE, {**CASE, "case_id": 2, "paraphrase_prompts": [""]}]))
    with pytest.raises(DataFormatError, match=r"a\.json, record 1: field 'sensitive'"):
        read_authors_json(tmp_path / "a.json", tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800", "loop.png"])
def test_names_that_cannot_be_files_are_refused_with_their_place(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(DataFormatError, match=r"^r\.jsonl, line 3: image"):
        resolve_inside(tmp_path, name, "r.jsonl, line 3")


def test_what_this_package_wrote_may_hold_nan_and_lone_surrogates(tmp_path: Path) -> None:
    assert parse_json('[NaN, "\\ud800"]', own=True)[1] == "\ud800"
    (tmp_path / "answers.jsonl").write_text(json.dumps({**ANSWER, "fields": {"query": "x"}}) + "\n[1]\n")
    with pytest.raises(DataFormatError, match=r"answers\.jsonl, line [12]: "):
        read_answers(tmp_path / "answers.jsonl")


def test_a_file_without_end_is_bounded() -> None:
    with pytest.raises(DataFormatError, match="/dev/zero is larger than 256 KiB"):
        read_yaml(Path("/dev/zero"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"absent\.json cannot be read"):
        read_json(tmp_path / "absent.json")


SPECS: dict[str, tuple[Path, Callable[[Path], Any]]] = {
    "subject": (SUBJECTS_FOLDER / "passport.yaml", load_subject_spec),
    "place": (PLACES_FOLDER / "cafe.yaml", load_scene_spec),
    "sign": (SIGNS_FOLDER / "bus.yaml", load_sign_spec),
}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 10)}]\n" for name in "bcdef"
)
UNREADABLE_YAML = {
    "more: 2023-99-99": "'2023-99-99' is no value of the type 'timestamp'; put text in quotes",
    "more: !!int x": "is no value of the type 'int'",
    "more: !!bool x": "is no value of the type 'bool'",
    "more: !!timestamp x": "is no value of the type 'timestamp'",
    "more: !!python/name:os.system": "is no value of the type",
    "more: " + "[" * 5000: "nested more than 64 deep",
    "more: " + "[" * 70 + "]" * 70: "nested more than 64 deep",
    "more: " + "9" * 5000: "no value of the type 'int'",
    "more: .nan": "is too large",
    'more: "\\ud800"': "half a surrogate pair",
    "more: &more [*more]": "an alias stands inside what it repeats",
    BOMB: "expand to more than 100000 values",
    "more: 1\nmore: 2": "the key 'more' is given twice",
    "more: [": "not valid YAML",
    "---\n": "another document",
}


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("text", UNREADABLE_YAML)
def test_unreadable_specs_are_refused_with_file_and_line(tmp_path: Path, kind: str, text: str) -> None:
    shipped, load = SPECS[kind]
    file = tmp_path / "own.yaml"
    file.write_text(f"{shipped.read_text().rstrip()}\n{text}\n")
    with pytest.raises(DataFormatError, match=r"own\.yaml, line \d+: ") as caught:
        load(file)
    assert UNREADABLE_YAML[text] in str(caught.value)


@pytest.mark.parametrize("kind", SPECS)
def test_specs_are_read_with_byte_order_mark_and_windows_line_ends(tmp_path: Path, kind: str) -> None:
    shipped, load = SPECS[kind]
    file = tmp_path / "own.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + shipped.read_bytes().replace(b"\n", b"\r\n"))
    load(file)
    file.write_text(shipped.read_text(), encoding="utf-16")
    with pytest.raises(DataFormatError, match=r"own\.yaml, line 1: not UTF-8 but UTF-16"):
        load(file)


def test_the_line_of_a_wrong_field_is_named(tmp_path: Path) -> None:
    text = SPECS["subject"][0].read_text()
    line = text[: text.index("colour_field:")].count("\n") + 1
    (tmp_path / "own.yaml").write_text(text.replace("colour_field:", "colour_feld:"))
    with pytest.raises(DataFormatError, match=r"own\.yaml, line \d+: ") as caught:
        load_subject_spec(tmp_path / "own.yaml")
    assert "colour_field" in str(caught.value)
    (tmp_path / "own.yaml").write_text(text.replace("colour_field: ", "colour_field: 5 #"))
    with pytest.raises(
        DataFormatError, match=rf"own\.yaml, line {line}: colour_field: .*found the number 5; put text in"
    ):
        load_subject_spec(tmp_path / "own.yaml")


def test_lists_on_the_command_line_are_read_alike() -> None:
    assert _parse_paths(["[a.yaml, b.yaml]"]) == ["a.yaml", "b.yaml"]
    with pytest.raises(NeuralGateError, match="--subjects, line 1: not valid YAML"):
        _parse_paths(["[a.yaml"])
