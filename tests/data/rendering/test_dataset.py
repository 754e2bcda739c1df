from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lightning_neuralgate.data.authors import read_authors_json
from lightning_neuralgate.data.records import RECORDS_NAME, read_records, read_retention
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.data.rendering.draw import PICTURE_SIZE
from lightning_neuralgate.data.rendering.questions import EDIT_TEMPLATES, PUBLIC_ATTRIBUTES, TEST_TEMPLATES
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.data.retention import RETENTION_NAME, render_retention
from lightning_neuralgate.data.splits import check_no_leakage
from lightning_neuralgate.errors import DataFormatError, DataLeakError
from lightning_neuralgate.gate.spans import find_subject

TICKET: dict[str, Any] = {
    "subject": "train ticket",
    "colour_field": "colour",
    "fields": {
        "colour": {
            "sensitive": False, "phrase": "colour", "answer": "It is {value}.", "choices": {"grey": "#888888"},
            "synonyms": {"grey": ["gray"]},
        },
        "side": {"sensitive": False, "phrase": "side", "answer": "It is {value}.", "choices": ["left", "right"]},
        "code": {"sensitive": True, "phrase": "code", "answer": "It is {value}.", "pattern": "#####"},
        "seat": {"sensitive": True, "phrase": "seat", "answer": "It is {value}.", "pattern": "####"},
    },
    "layouts": {"only": {"size": [0.9, 0.5], "elements": [{"draw": "value", "field": "code", "box": [0.1, 0.2, 0.9, 0.6]}]}},
}  # fmt: skip


def write_ticket_spec(folder: Path, name: str = "ticket", unseen: tuple[str, ...] = (), **changes: Any) -> Path:
    fields = {key: {**field, "unseen": key in unseen} for key, field in TICKET["fields"].items()}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**TICKET, "fields": fields, **changes}))
    return file


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_splits_do_not_leak_and_are_read_back(tmp_path: Path) -> None:
    splits = render_splits(tmp_path, seed=1, edit_records=2, test_records=2, edit_pairs=3, test_pairs=2)
    assert [len(records) for records in splits] == [6, 6, 6, 6, 0]
    assert {record.subject for record in splits.unseen_subjects} == {"driver licence"}
    check_no_leakage(splits)
    assert read_records(tmp_path / RECORDS_NAME, tmp_path) == splits
    for record in itertools.chain(*splits):
        assert Image.open(record.image).size == (PICTURE_SIZE, PICTURE_SIZE)
        for pair in record.pairs:
            assert find_subject(pair.sensitive, record.subject)
            assert find_subject(pair.benign, record.subject)
            assert pair.sensitive_truth
            assert pair.benign_truth
    assert not set(EDIT_TEMPLATES) & set(TEST_TEMPLATES)


def test_pairs_differ_only_in_the_attribute_and_fit_their_split(tmp_path: Path) -> None:
    splits = render_splits(
        tmp_path, seed=4, edit_records=1, test_records=1, edit_pairs=3, test_pairs=3, validation_records=1
    )
    assert len(splits.validation) == 3
    assert read_records(tmp_path / RECORDS_NAME, tmp_path) == splits
    wordings = [
        {
            query.replace(name, "@").replace(record.subject, "#")
            for record in records
            for query, name in record.queries()
        }
        for records in (splits.edit, splits.test, splits.validation)
    ]
    assert not any(first & second for first, second in itertools.combinations(wordings, 2))
    for split, records in splits._asdict().items():
        unseen = {"unseen_attributes": True, "unseen_subjects": None}.get(split, False)
        for record in records:
            spec = load_subject_spec(record.subject.replace(" ", "_").lower())
            for pair in record.pairs:
                assert pair.sensitive_attribute in spec.phrases(sensitive=True, unseen=unseen).values()
                assert pair.benign_attribute in spec.phrases(sensitive=False, unseen=unseen).values()
                assert pair.sensitive.replace(pair.sensitive_attribute, "@") == pair.benign.replace(
                    pair.benign_attribute, "@"
                )


@pytest.mark.parametrize("unseen", [(), ("seat", "side")])
def test_custom_spec_with_and_without_unseen_attributes(tmp_path: Path, unseen: tuple[str, ...]) -> None:
    spec = write_ticket_spec(
        tmp_path,
        unseen=unseen,
        edit_templates=["Say {subject} {attribute}!"],
        test_templates=["{attribute} {subject}?"],
    )
    splits = render_splits(tmp_path / "out", 0, 1, 2, 2, 2, [spec], ["drone"])
    assert [len(records) for records in splits] == [1, 2, 2 if unseen else 0, 2, 0]
    attributes = ("code", "seat")[: 1 if unseen else 2]
    assert {pair.sensitive for pair in splits.edit[0].pairs} == {f"Say train ticket {name}!" for name in attributes}
    assert {pair.sensitive for record in splits.test for pair in record.pairs} == {
        f"{name} train ticket?" for name in attributes
    }
    assert {pair.sensitive_attribute for record in splits.unseen_attributes for pair in record.pairs} == (
        {"seat"} if unseen else set()
    )
    synonyms = {pair.benign_attribute: pair.benign_synonyms for record in splits.test for pair in record.pairs}
    assert synonyms == ({"colour": ("gray",)} if unseen else {"colour": ("gray",), "side": ()})


@pytest.mark.parametrize("pairs", [2, 5])
def test_every_attribute_is_used_before_any_is_repeated(tmp_path: Path, pairs: int) -> None:
    splits = render_splits(tmp_path, 0, 3, 3, pairs, pairs, ["passport"], [])
    for record in (*splits.edit, *splits.test):
        spec = load_subject_spec("passport")
        for sensitive in (True, False):
            phrases = spec.phrases(sensitive, unseen=False)
            counts = Counter(pair.sensitive_attribute if sensitive else pair.benign_attribute for pair in record.pairs)
            assert max(counts.values()) - (min(counts.values()) if pairs >= len(phrases) else 1) <= 1
            assert len(counts) == min(pairs, len(phrases))


def test_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        render_splits(tmp_path / name, seed, 1, 1, 2, 2)
        render_retention(tmp_path / name, seed, "open", 4)
    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")
    changed = hashes(tmp_path / "other")
    assert not [
        name for name, digest in hashes(tmp_path / "first").items() if changed[name] == digest and "README" not in name
    ]


def test_test_pictures_do_not_depend_on_the_number_of_records(tmp_path: Path) -> None:
    few = render_splits(tmp_path / "few", 0, 1, 1, 1, 1)
    many = render_splits(tmp_path / "many", 0, 4, 2, 3, 2, ["receipt", "passport"], ["drone"])
    pictures = {record.record_id: record.image.read_bytes() for record in many.test}
    shared = [record for record in few.test if record.record_id in pictures]
    assert len(shared) == 2
    assert all(record.image.read_bytes() == pictures[record.record_id] for record in shared)


def test_edit_and_test_pictures_share_no_secret(tmp_path: Path) -> None:
    fields = {**TICKET["fields"], "code": {**TICKET["fields"]["code"], "pattern": "0000#"}}
    spec = write_ticket_spec(tmp_path, fields=fields)
    splits = render_splits(tmp_path / "out", 0, 6, 2, 2, 2, [spec], [])

    def codes(records: Any) -> set[str | None]:
        return {p.sensitive_truth for record in records for p in record.pairs if p.sensitive_attribute == "code"}

    assert len(codes(splits.test)) == 2, "with ten values in all, some edit picture would share one by chance"
    assert not codes(splits.edit) & codes(splits.test)


def test_failed_render_leaves_no_files_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    spec = write_ticket_spec(tmp_path)
    with pytest.raises(DataFormatError, match="two subject specs have the subject 'train ticket'"):
        render_splits(out, 0, subjects=[spec], unseen=[spec])
    with pytest.raises(DataFormatError, match="has sensitive fields with 'unseen: true' but no benign one"):
        render_splits(out, 0, subjects=[write_ticket_spec(tmp_path, unseen=("seat",))], unseen=[])
    with pytest.raises(DataLeakError, match=r"has the query 'Name the .*', which edit record"):
        render_splits(
            out, 0, 1, 9, subjects=[write_ticket_spec(tmp_path, edit_templates=[TEST_TEMPLATES[0]])], unseen=[]
        )
    name = {"sensitive": True, "phrase": "n", "answer": "{value}", "faker": "no_such_provider"}
    with pytest.raises(DataFormatError, match="Faker has no provider"):
        render_splits(
            out, 0, subjects=["passport", write_ticket_spec(tmp_path, fields={**TICKET["fields"], "name": name})]
        )
    assert [path.name for path in tmp_path.iterdir()] == ["ticket.yaml"]


@pytest.mark.parametrize("name", ["records.jsonl", "retention.jsonl", "images/README.md"])
def test_files_that_no_render_has_written_are_not_replaced(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    for content in ("written by hand", None):
        if content is None:  # rendered, and then changed by hand
            render_splits(out, 0, 1, 1, 1, 1, ["passport"], [])
            render_retention(out, 0, "open", 2)
            content = (out / name).read_text() + "changed"
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)
        with pytest.raises(DataFormatError, match=rf"{name} would be replaced, but was not written by an earlier run"):
            render_retention(out, 1, "open", 2) if "retention" in name else render_splits(
                out, 1, 1, 1, 1, 1, ["passport"], []
            )
        assert (out / name).read_text() == content
        (out / name).unlink()


def test_a_render_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.draft-abcd1234" / "out").mkdir(parents=True)
    render_splits(out, 0, 1, 1, 1, 1, ["passport"], [])
    assert list(tmp_path.iterdir()) == [out]
    render_splits(out, 1, 1, 1, 1, 1, ["receipt"], [])  # an earlier dataset is replaced
    assert not list(out.glob("unfinished"))


def test_authors_files_contain_the_same_records(tmp_path: Path) -> None:
    splits = render_splits(tmp_path, seed=2, edit_records=2, test_records=1, edit_pairs=3)
    from_authors = read_authors_json(tmp_path / "authors" / "passport-edit.json", tmp_path)
    assert [record.image.resolve() for record in from_authors] == [
        record.image.resolve() for record in splits.edit if record.subject == "passport"
    ]
    files = {path.name for path in (tmp_path / "authors").iterdir()}
    assert "driver-licence-unseen_subjects.json" in files
    assert len(files) == 3 * 3 + 1


def test_retention_questions_name_no_private_subject(tmp_path: Path) -> None:
    items = render_retention(tmp_path, 0, "open", 36)
    assert len(items) == 36
    assert read_retention(tmp_path / RETENTION_NAME, tmp_path) == items
    for item in items:
        assert item.image is not None
        assert item.image.is_file()
        assert not any(find_subject(item.query, name.replace("_", " ")) for name in shipped_subjects())


def test_public_questions_use_the_edits_templates_and_no_test_attributes(tmp_path: Path) -> None:
    public = [item.query for item in render_retention(tmp_path, 0, "open", 180)[90:]]
    forms = [re.escape(form).replace(r"\{attribute\}", "(.+)").replace(r"\{subject\}", ".+") for form in EDIT_TEMPLATES]
    attributes = {next(match[1] for form in forms if (match := re.fullmatch(form, query))) for query in public}
    assert attributes == set(PUBLIC_ATTRIBUTES)
    shipped = [load_subject_spec(name) for name in shipped_subjects()]
    phrases = {phrase for spec in shipped for sensitive in (True, False) for phrase in spec.phrases(sensitive).values()}
    assert attributes & phrases == {"colour"}, "attributes of the test are not trained on"
    unseen = {
        word for spec in shipped for phrase in spec.phrases(False, unseen=True).values() for word in phrase.split()
    }
    assert not {word for attribute in attributes for word in attribute.split()} & unseen


def test_public_questions_do_not_change_the_ordinary_ones(tmp_path: Path) -> None:
    few, many = (render_retention(tmp_path, 0, "open", count) for count in (8, 20))
    assert many[:4] == few[:4]


def test_malformed_retention_lines_raise_errors_naming_the_line(tmp_path: Path) -> None:
    file = tmp_path / RETENTION_NAME
    for bad, message in (
        ('{"image": "a.png"}', "line 1: field 'query': Field required"),
        ('{"query": "What?", "image": "../a.png"}', "line 1: image path .* leaves the image root"),
        ("[]", "line 1: expected one JSON object per line, found list"),
        ("nonsense", "line 1"),
        ('{"query": "What?"}\n\n{', "line 3"),
    ):
        file.write_text(bad)
        with pytest.raises(DataFormatError, match=message):
            read_retention(file, tmp_path)


def test_malformed_record_lines_raise_errors_naming_the_line(tmp_path: Path) -> None:
    render_splits(tmp_path, seed=1, edit_records=1, test_records=1)
    file = tmp_path / RECORDS_NAME
    good = file.read_text()
    image = "images/train-edit/passport-edit-0.png"
    assert image in good
    for bad, message in (
        (good.replace(image, "../../x.png", 1), "line 1: image path .* leaves the image root"),
        (good.replace('"subject": "passport"', '"subject": ""', 1), "line 1: field 'subject'"),
        (good.replace('"split": "edit"', '"split": "train"', 1), "line 1: not a record with a 'split'"),
        (good.replace('"split": "edit"', '"split": "count"', 1), "line 1: not a record with a 'split'"),
        ("{\n" + good, "line 1: not JSON"),
        ("\n\n{\n" + good, "line 3: not JSON"),
    ):
        file.write_text(bad)
        with pytest.raises(DataFormatError, match=message):
            read_records(file, tmp_path)


@pytest.mark.parametrize("field", ["sensitive_truth", "benign_truth", "benign_synonyms"])
def test_true_values_without_letters_and_digits_are_refused(tmp_path: Path, field: str) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    truths = {"sensitive_truth": "12-3", "benign_truth": "red", "benign_synonyms": ["crimson"]}
    good = {"sensitive": "Which number?", "benign": "Which colour?", "refusal": "I cannot", **truths}
    bad = {**good, field: ["***"] if field == "benign_synonyms" else "***"}
    for pairs, expected in (([good], None), ([good, bad], field.replace("synonyms", "truth"))):
        line = {"split": "test", "record_id": "p7", "subject": "passport", "image": "a.png", "pairs": pairs}
        (tmp_path / RECORDS_NAME).write_text(json.dumps(line) + "\n")
        if expected is None:
            assert len(read_records(tmp_path / RECORDS_NAME, tmp_path).test) == 1
        else:
            message = (
                rf"{RECORDS_NAME}, line 1: record 'p7', field 'pairs.1.{expected}': .* '\*\*\*' has neither letters"
            )
            with pytest.raises(DataFormatError, match=message):
                read_records(tmp_path / RECORDS_NAME, tmp_path)
