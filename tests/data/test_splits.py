from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from PIL import Image

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, RecordSplits
from lightning_neuralgate.data.splits import check_no_leakage, split_records
from lightning_neuralgate.errors import DataFormatError, DataLeakError


def record(folder: Path, name: str, subject: str = "passport", query: str | None = None, **known: str) -> PrivacyRecord:
    image = folder / f"{name}.png"
    mark = zlib.crc32(name.encode())
    Image.new("RGB", (3, 3), (mark & 255, mark >> 8 & 255, mark >> 16 & 255)).save(image)
    own = QueryPair(sensitive=f"number {name}?", benign=f"colour {name}?", refusal="I cannot")
    pairs = (own,) if query is None else (own, own.model_copy(update={"sensitive": query, **known}))
    return PrivacyRecord(record_id=name, subject=subject, image=image, pairs=pairs)


def asking(folder: Path, name: str, secret: str, plain: str, template: str = "What {} is it?") -> PrivacyRecord:
    """A record with one pair that says what it asks for."""
    pair = QueryPair(
        sensitive=f"{template.format(secret)} {name}", benign=f"{template.format(plain)} {name}", refusal="I cannot",
        sensitive_attribute=secret, benign_attribute=plain,
    )  # fmt: skip
    return record(folder, name).model_copy(update={"pairs": (pair,)})


def test_at_most_ten_and_at_most_a_third(tmp_path: Path) -> None:
    records = [record(tmp_path, f"a{i}") for i in range(60)] + [record(tmp_path, f"b{i}", "receipt") for i in range(8)]
    splits = split_records([*records, record(tmp_path, "c", "drone")], unseen=["Drone"])
    subjects = [one.subject for one in splits.edit]
    assert (subjects.count("passport"), subjects.count("receipt")) == (10, 2)
    assert (len(splits.test), [one.record_id for one in splits.unseen_subjects]) == (56, ["c"])
    assert (
        split_records(records, seed=0).edit
        == split_records(records, seed=0).edit
        != split_records(records, seed=1).edit
    )


def test_queries_of_the_edit_are_taken_out_of_the_test(tmp_path: Path) -> None:
    records = [
        record(tmp_path, f"a{i}", query="Which NUMBER  is it?" if i % 2 else "which number is it?") for i in range(9)
    ]
    splits = split_records(records)
    assert all(len(one.pairs) == 1 for one in splits.test)
    assert len(splits.test) == 6


def test_an_unseen_subject_that_is_not_there(tmp_path: Path) -> None:
    records = [record(tmp_path, f"a{i}", "Receipts") for i in range(6)]
    with pytest.raises(
        DataFormatError, match=r"no records of the unseen subjects \['receipt'\]; there are \['receipts'\]"
    ):
        split_records(records, unseen=["receipt"])


def test_two_records_of_one_name(tmp_path: Path) -> None:
    one = record(tmp_path, "a")
    with pytest.raises(DataFormatError, match="edit: several records have the id 'a'"):
        check_no_leakage(RecordSplits([one, one], [], [], []))


def test_too_few_records(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="subject 'passport' has 2 records"):
        split_records([record(tmp_path, "a"), record(tmp_path, "b")])


def test_each_leak_is_found(tmp_path: Path) -> None:
    edit = record(tmp_path, "edit")
    fresh = record(tmp_path, "fresh")
    check_no_leakage(RecordSplits([edit], [fresh], [], [record(tmp_path, "other", "drone")]))

    with pytest.raises(DataLeakError, match="test record 'edit' is an edit record"):
        check_no_leakage(RecordSplits([edit], [edit], [], []))
    asks_the_same = record(tmp_path, "same", query="Number  EDIT?")
    with pytest.raises(DataLeakError, match="asks 'Number  EDIT\\?', and so does edit record 'edit'"):
        check_no_leakage(RecordSplits([edit], [asks_the_same], [], []))
    with pytest.raises(DataLeakError, match="its subject 'Passport' was edited in record 'edit'"):
        check_no_leakage(RecordSplits([edit], [], [], [record(tmp_path, "u", "Passport")]))


@pytest.mark.parametrize("split", ["test", "unseen_attributes", "unseen_subjects"])
def test_a_picture_is_found_again_in_another_file_format(tmp_path: Path, split: str) -> None:
    edit, fresh = record(tmp_path, "edit"), record(tmp_path, "fresh", "drone")
    Image.open(edit.image).save(tmp_path / "copied.bmp")
    leaking = fresh.model_copy(update={"image": tmp_path / "copied.bmp"})
    with pytest.raises(DataLeakError, match=f"{split} record 'fresh' shows the same picture as edit record 'edit'"):
        check_no_leakage(RecordSplits([edit], [], [], [])._replace(**{split: [leaking]}))


def test_a_picture_that_is_none_is_named(tmp_path: Path) -> None:
    edit = record(tmp_path, "edit")
    edit.image.write_text("no picture")
    with pytest.raises(DataFormatError, match=r"the picture .*edit.png cannot be read"):
        check_no_leakage(RecordSplits([edit], [], [], []))


def test_a_template_is_found_again_under_other_words(tmp_path: Path) -> None:
    edit = asking(tmp_path, "a", "Name", "colour", "Name the {} of the passport.")
    query = "name  the serial of the Drone. a"
    for attribute, found in (("serial", True), ("", False)):
        leaking = record(tmp_path, "b", "drone", query, sensitive_attribute=attribute)
        splits = RecordSplits([edit], [leaking], [], [])
        if found:
            with pytest.raises(
                DataLeakError, match=r"in the template 'name the \{attribute\} of the \{subject\}\. a' of edit"
            ):
                check_no_leakage(splits)
        else:
            check_no_leakage(splits)


def test_an_unseen_attribute_that_was_edited_is_found(tmp_path: Path) -> None:
    edit, unseen = asking(tmp_path, "a", "number", "colour"), asking(tmp_path, "b", "Birth", "Size", "Say {}!")
    check_no_leakage(RecordSplits([edit], [], [unseen], []))
    for secret, plain, named in (("NUMBER", "size", "NUMBER"), ("birth", "Colour", "Colour")):
        leaking = asking(tmp_path, "c", secret, plain, "Say {}!")
        with pytest.raises(DataLeakError, match=f"unseen attribute '{named}', and so does edit record 'a'"):
            check_no_leakage(RecordSplits([edit], [], [leaking], []))
        of_another_subject = leaking.model_copy(update={"subject": "drone"})
        check_no_leakage(RecordSplits([edit], [], [of_another_subject], []))
    in_words = record(tmp_path, "d", query="What is the Birth date?")
    with pytest.raises(DataLeakError, match="unseen attribute 'Birth', and so does edit record 'd'"):
        check_no_leakage(RecordSplits([in_words], [], [unseen], []))
    with pytest.raises(DataFormatError, match="does not say what it asks for"):
        check_no_leakage(RecordSplits([edit], [], [record(tmp_path, "e")], []))


@pytest.mark.parametrize("known", [True, False])
def test_attributes_are_held_out_of_an_edit(tmp_path: Path, known: bool) -> None:
    records = []
    for number in range(6):
        pairs = tuple(
            pair
            for secret, plain in (("number", "colour"), ("home address", "size"), ("home address", "colour"))
            for pair in asking(tmp_path, f"r{number}", secret, plain, f"{number} {{}} {number}?").pairs
        )
        if not known:
            pairs = tuple(pair.model_copy(update={"sensitive_attribute": "", "benign_attribute": ""}) for pair in pairs)
        records.append(record(tmp_path, f"r{number}").model_copy(update={"pairs": pairs}))
    splits = split_records(records, unseen_attributes=["Home  address", "size"])
    assert [len(split) for split in splits] == [2, 4, 4, 0]
    for name, words in (("edit", "number"), ("test", "number"), ("unseen_attributes", "home address")):
        assert all(words in pair.sensitive for one in getattr(splits, name) for pair in one.pairs)
    assert splits.unseen_attributes[0].pairs[0].benign_attribute == "size"
    with pytest.raises(DataFormatError, match="no query pair asks for two of the unseen attributes"):
        split_records(records, unseen_attributes=["home address"])


def test_one_template_for_all_leaves_nothing_to_test(tmp_path: Path) -> None:
    records = [asking(tmp_path, f"r{number}", "number", "colour") for number in range(6)]
    fixed = [
        one.model_copy(update={"pairs": (one.pairs[0].model_copy(update={"sensitive": "What number is it?"}),)})
        for one in records
    ]
    with pytest.raises(DataFormatError, match="no query of test is left"):
        split_records(fixed)
