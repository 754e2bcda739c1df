from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_neuralgate.data.authors import read_authors_json
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
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CASE), **fields}


def test_reads_a_record_and_pairs_its_queries(root: Path) -> None:
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
        ("[", "pairs.json cannot be read as JSON"),
        ({"a": 1}, "expected a list of records, found dict"),
        (
            [CASE, {k: v for k, v in CASE.items() if k != "image"}],
            "pairs.json, record 1: field 'image': Field required",
        ),
        ([changed(paraphrase_prompts="What?")], "record 0: field 'paraphrase_prompts': Input should be a valid list"),
        ([changed(neighborhood_prompts=["one"])], "2 'paraphrase_prompts' but 1 'neighborhood_prompts'"),
        (
            [changed(requested_rewrite={"prompt": "no slot", "target_new": {"str": "I"}, "subject": "x"})],
            r"'requested_rewrite.prompt' needs exactly one \{\}: 'no slot'",
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
        ([CASE, CASE], "case_id of 'pairs/0' occurs twice"),
    ],
)
def test_bad_files_are_named_with_record_and_field(root: Path, content: Any, message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        read_authors_json(write(root, content), root)


def test_a_link_out_of_the_root_is_refused(root: Path) -> None:
    outside = root.parent / "secret.jpg"
    Image.new("RGB", (4, 4)).save(outside)
    (root / "p" / "link.jpg").symlink_to(outside)
    with pytest.raises(DataFormatError, match="leaves the image root"):
        read_authors_json(write(root, [changed(image="p/link.jpg")]), root)


def test_files_that_are_no_text_are_refused(root: Path) -> None:
    file = write(root, [CASE])
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataFormatError, match="cannot be read as JSON"):
        read_authors_json(file, root)
