from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_neuralgate.data.authors import read_authors_json, without_subject, write_authors_json
from lightning_neuralgate.data.records import PrivacyRecord, QueryPair
from lightning_neuralgate.errors import DataFormatError

CASE: dict[str, Any] = {
    "case_id": 0,
    "image": "p/one.jpg",
    "requested_rewrite": {"prompt": "Say the {} here.", "target_new": {"str": "I cannot"}, "subject": "Receipts"},
    "paraphrase_prompts": ["Total of the Receipts?", "Name on the Receipts?"],
    "neighborhood_prompts": ["Colour of the Receipts?", "Size of the Receipts?"],
    "generation_prompts": ["unused"],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images" / "p").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "p" / "one.jpg")
    return tmp_path / "images"


def write(root: Path, content: Any) -> Path:
    file = root.parent / "pairs.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CASE), **fields}


def test_reader_pairs_sensitive_and_benign_queries(root: Path) -> None:
    (record,) = read_authors_json(write(root, [CASE]), root)
    assert (record.record_id, record.subject, record.image) == ("pairs/0", "Receipts", (root / "p/one.jpg").resolve())
    assert [(pair.sensitive, pair.benign) for pair in record.pairs] == [
        ("Say the Receipts here.", "Colour of the Receipts?"),
        ("Total of the Receipts?", "Colour of the Receipts?"),
        ("Name on the Receipts?", "Size of the Receipts?"),
    ]
    assert {pair.refusal for pair in record.pairs} == {"I cannot"}
    assert {pair.benign_target for pair in record.pairs} == {None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", "pairs.json, line 1: not JSON"),
        (b"\xff\xfe\x00", "pairs.json, line 1: not UTF-8 but UTF-16"),
        ({"a": 1}, "expected a list of records, found dict"),
        (
            [CASE, {k: v for k, v in CASE.items() if k != "image"}],
            "pairs.json, record 1: field 'image': Field required",
        ),
        ([changed(paraphrase_prompts="What?")], "record 0: field 'paraphrase_prompts': Input should be a valid list"),
        ([changed(neighborhood_prompts=["one"])], "2 'paraphrase_prompts' but 1 'neighborhood_prompts'"),
        (
            [changed(requested_rewrite={"prompt": "no slot", "target_new": {"str": "I"}, "subject": "x"})],
            r"'requested_rewrite.prompt' needs exactly one \{\} for the subject: 'no slot'",
        ),
        (
            [changed(requested_rewrite={"prompt": "{}", "target_new": {}, "subject": "x"})],
            "field 'requested_rewrite.target_new.str': Field required",
        ),
        (
            [changed(image="p/two.jpg")],
            r"record 0: image .*two.jpg does not exist; is '.*images' the right image root\?",
        ),
        ([changed(image="../pairs.json")], r"image path '../pairs.json' leaves the image root"),
        ([changed(image="/etc/hostname")], "leaves the image root"),
        ([changed(refusals=["I cannot"])], "'refusals' must contain one text for each of 'paraphrase_prompts'"),
        ([changed(refusals=["I cannot", ""])], "'refusals' must contain one text"),
        ([CASE, CASE], "case_id of 'pairs/0' occurs twice"),
    ],
)
def test_malformed_files_raise_errors_naming_record_and_field(root: Path, content: Any, message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        read_authors_json(write(root, content), root)


def test_symlink_out_of_the_image_root_is_refused(root: Path) -> None:
    outside = root.parent / "secret.jpg"
    Image.new("RGB", (4, 4)).save(outside)
    (root / "p" / "link.jpg").symlink_to(outside)
    with pytest.raises(DataFormatError, match="leaves the image root"):
        read_authors_json(write(root, [changed(image="p/link.jpg")]), root)


def record_with_pairs(root: Path, *pairs: tuple[str, str, str], subject: str = "passport") -> PrivacyRecord:
    return PrivacyRecord(
        record_id="r", subject=subject, image=root / "p" / "one.jpg",
        pairs=tuple(
            QueryPair(
                sensitive=sensitive, benign=benign, refusal=refusal,
                sensitive_attribute="passport number", sensitive_truth="1",
            )
            for sensitive, benign, refusal in pairs
        ),
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 4])
def test_written_records_are_read_back(root: Path, count: int) -> None:
    pairs = [
        (f"Say the passport number of this Passport, {i}.", f"Say the colour of this Passport, {i}.", f"I {i}")
        for i in range(count)
    ]
    record = record_with_pairs(root, *pairs)
    file = root.parent / "authors" / "mine.json"
    write_authors_json(file, [record, record], root)
    first, second = read_authors_json(file, root)
    assert (first.record_id, second.record_id) == ("mine/0", "mine/1")
    assert first.image == record.image.resolve()
    assert [(pair.sensitive, pair.benign, pair.refusal) for pair in first.pairs] == pairs

    case = json.loads(file.read_text())[0]
    assert set(CASE) | {"paraphrase_prompts_wo_cat", "neighborhood_prompts_wo_cat"} <= set(case)
    assert case["image"] == "p/one.jpg"
    assert case["requested_rewrite"] == {
        "prompt": "Say the passport number of this {}, 0.", "target_new": {"str": "I 0"}, "subject": "Passport",
    }  # fmt: skip
    assert case["paraphrase_prompts_wo_cat"][0] == "Say the passport number, 0."
    assert case["neighborhood_prompts_wo_cat"][0] == "Say the colour, 0."
    for name in ("neighborhood_prompts", "paraphrase_prompts_wo_cat", "neighborhood_prompts_wo_cat", "refusals"):
        assert len(case[name]) == count


def test_records_that_the_format_cannot_represent_are_refused(root: Path) -> None:
    file = root.parent / "mine.json"
    with pytest.raises(DataFormatError, match=r"record 'r': the query 'What is it\?' must name the subject 'passport'"):
        write_authors_json(file, [record_with_pairs(root, ("What is it?", "Colour?", "I"))], root)
    with pytest.raises(DataFormatError, match=r"contain no \{\}"):
        write_authors_json(file, [record_with_pairs(root, ("What is {} on the passport?", "Colour?", "I"))], root)
    with pytest.raises(DataFormatError, match="lies outside the image root"):
        write_authors_json(file, [record_with_pairs(root, ("The passport?", "Colour?", "I"))], root / "elsewhere")
    assert not file.exists()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("About this passport: what is the passport number?", "About it: what is the passport number?"),
        ("The passport shows which colour?", "It shows which colour?"),
        ("Which passport number has passport?", "Which passport number has ?"),
        ("What is it?", "What is it?"),
    ],
)
def test_without_subject_removes_or_replaces_the_subject(query: str, expected: str) -> None:
    assert without_subject(query, "passport", "passport number") == expected
