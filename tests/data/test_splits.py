from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, RecordSplits
from lightning_neuralgate.data.splits import check_no_leakage, split_records
from lightning_neuralgate.errors import DataFormatError, DataLeakError


def record(folder: Path, name: str, subject: str = "passport", query: str | None = None) -> PrivacyRecord:
    image = folder / f"{name}.png"
    Image.new("RGB", (3, 3), (len(name) * 7 % 255, hash(name) % 255, sum(map(ord, name)) % 255)).save(image)
    image.write_bytes(image.read_bytes() + name.encode())
    own = QueryPair(sensitive=f"number {name}?", benign=f"colour {name}?", refusal="I cannot")
    pairs = (own,) if query is None else (own, own.model_copy(update={"sensitive": query}))
    return PrivacyRecord(record_id=name, subject=subject, image=image, pairs=pairs)


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
        check_no_leakage(RecordSplits([one, one], [], []))


def test_too_few_records(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="subject 'passport' has 2 records"):
        split_records([record(tmp_path, "a"), record(tmp_path, "b")])


def test_each_leak_is_found(tmp_path: Path) -> None:
    edit = record(tmp_path, "edit")
    fresh = record(tmp_path, "fresh")
    check_no_leakage(RecordSplits([edit], [fresh], [record(tmp_path, "other", "drone")]))

    with pytest.raises(DataLeakError, match="test record 'edit' is an edit record"):
        check_no_leakage(RecordSplits([edit], [edit], []))
    copied = tmp_path / "copied.png"
    shutil.copy(edit.image, copied)
    with pytest.raises(DataLeakError, match="'fresh' shows the same picture as edit record 'edit'"):
        check_no_leakage(RecordSplits([edit], [fresh.model_copy(update={"image": copied})], []))
    asks_the_same = record(tmp_path, "same", query="Number  EDIT?")
    with pytest.raises(DataLeakError, match="asks 'Number  EDIT\\?', and so does edit record 'edit'"):
        check_no_leakage(RecordSplits([edit], [asks_the_same], []))
    with pytest.raises(DataLeakError, match="its subject 'Passport' was edited in record 'edit'"):
        check_no_leakage(RecordSplits([edit], [], [record(tmp_path, "u", "Passport")]))
