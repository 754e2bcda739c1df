from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, RecordSplits
from lightning_neuralgate.data.rendering.draw import render
from lightning_neuralgate.data.rendering.page import load_font
from lightning_neuralgate.data.rendering.spec import load_subject_spec
from lightning_neuralgate.data.splits import check_no_leakage, split_records
from lightning_neuralgate.errors import DataFormatError, DataLeakError


def record(
    folder: Path, name: str, subject: str = "passport", query: str | None = None, **attributes: str
) -> PrivacyRecord:
    image = folder / f"{name}.png"
    digest = zlib.crc32(name.encode())
    Image.new("RGB", (3, 3), (digest & 255, digest >> 8 & 255, digest >> 16 & 255)).save(image)
    pair = QueryPair(sensitive=f"number {name}?", benign=f"colour {name}?", refusal="I cannot")
    pairs = (pair,) if query is None else (pair, pair.model_copy(update={"sensitive": query, **attributes}))
    return PrivacyRecord(record_id=name, subject=subject, image=image, pairs=pairs)


def with_attributes(
    folder: Path, name: str, sensitive: str, benign: str, template: str = "What {} is it?"
) -> PrivacyRecord:
    """Return a record with one pair, whose attributes are known."""
    pair = QueryPair(
        sensitive=f"{template.format(sensitive)} {name}", benign=f"{template.format(benign)} {name}",
        refusal="I cannot", sensitive_attribute=sensitive, benign_attribute=benign,
    )  # fmt: skip
    return record(folder, name).model_copy(update={"pairs": (pair,)})


def test_edit_gets_at_most_ten_records_and_at_most_a_third(tmp_path: Path) -> None:
    records = [record(tmp_path, f"a{i}") for i in range(60)] + [record(tmp_path, f"b{i}", "receipt") for i in range(8)]
    splits = split_records([*records, record(tmp_path, "c", "drone")], unseen=["Drone"])
    subjects = [item.subject for item in splits.edit]
    assert (subjects.count("passport"), subjects.count("receipt")) == (10, 2)
    assert (len(splits.test), [item.record_id for item in splits.unseen_subjects]) == (56, ["c"])
    assert (
        split_records(records, seed=0).edit
        == split_records(records, seed=0).edit
        != split_records(records, seed=1).edit
    )


def test_queries_of_the_edit_are_removed_from_the_test(tmp_path: Path) -> None:
    records = [
        record(tmp_path, f"a{i}", query="Which NUMBER  is it?" if i % 2 else "which number is it?") for i in range(9)
    ]
    splits = split_records(records)
    assert all(len(item.pairs) == 1 for item in splits.test)
    assert len(splits.test) == 6


def test_unknown_unseen_subject_is_refused(tmp_path: Path) -> None:
    records = [record(tmp_path, f"a{i}", "Receipts") for i in range(6)]
    with pytest.raises(
        DataFormatError, match=r"no records of the unseen subjects \['receipt'\]; there are \['receipts'\]"
    ):
        split_records(records, unseen=["receipt"])


def test_duplicate_record_ids_are_refused(tmp_path: Path) -> None:
    duplicate = record(tmp_path, "a")
    with pytest.raises(DataFormatError, match="edit: several records have the id 'a'"):
        check_no_leakage(RecordSplits([duplicate, duplicate], [], [], []))


def test_too_few_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="subject 'passport' has 2 records"):
        split_records([record(tmp_path, "a"), record(tmp_path, "b")])


def test_shared_records_queries_and_subjects_are_leaks(tmp_path: Path) -> None:
    edit = record(tmp_path, "edit")
    fresh = record(tmp_path, "fresh")
    check_no_leakage(RecordSplits([edit], [fresh], [], [record(tmp_path, "other", "drone")]))

    with pytest.raises(DataLeakError, match="test record 'edit' is also an edit record"):
        check_no_leakage(RecordSplits([edit], [edit], [], []))
    same_query = record(tmp_path, "same", query="Number  EDIT?")
    with pytest.raises(DataLeakError, match="has the query 'Number  EDIT\\?', which edit record 'edit' has too"):
        check_no_leakage(RecordSplits([edit], [same_query], [], []))
    with pytest.raises(DataLeakError, match="its subject 'Passport' was edited in record 'edit'"):
        check_no_leakage(RecordSplits([edit], [], [], [record(tmp_path, "u", "Passport")]))


@pytest.mark.parametrize("split", ["test", "unseen_attributes", "unseen_subjects"])
def test_same_picture_in_another_file_format_is_a_leak(tmp_path: Path, split: str) -> None:
    edit, fresh = record(tmp_path, "edit"), record(tmp_path, "fresh", "drone")
    Image.open(edit.image).save(tmp_path / "copied.bmp")
    leaking = fresh.model_copy(update={"image": tmp_path / "copied.bmp"})
    with pytest.raises(DataLeakError, match=f"{split} record 'fresh' has the same picture as edit record 'edit'"):
        check_no_leakage(RecordSplits([edit], [], [], [])._replace(**{split: [leaking]}))


def test_unreadable_picture_is_refused(tmp_path: Path) -> None:
    edit = record(tmp_path, "edit")
    edit.image.write_text("no picture")
    with pytest.raises(DataFormatError, match=r"record edit: picture .*edit.png cannot be read"):
        check_no_leakage(RecordSplits([edit], [], [], []))


def test_same_template_with_other_words_is_a_leak(tmp_path: Path) -> None:
    edit = with_attributes(tmp_path, "a", "Name", "colour", "Name the {} of the passport.")
    query = "name  the serial of the Drone. a"
    for attribute, is_leak in (("serial", True), ("", False)):
        leaking = record(tmp_path, "b", "drone", query, sensitive_attribute=attribute)
        splits = RecordSplits([edit], [leaking], [], [])
        if is_leak:
            with pytest.raises(
                DataLeakError, match=r"built from the template 'name the \{attribute\} of the \{subject\}\. a' of edit"
            ):
                check_no_leakage(splits)
        else:
            check_no_leakage(splits)


def test_edited_unseen_attribute_is_a_leak(tmp_path: Path) -> None:
    edit, unseen = (
        with_attributes(tmp_path, "a", "number", "colour"),
        with_attributes(tmp_path, "b", "Birth", "Size", "Say {}!"),
    )
    check_no_leakage(RecordSplits([edit], [], [unseen], []))
    for sensitive, benign, leaked in (("NUMBER", "size", "NUMBER"), ("birth", "Colour", "Colour")):
        leaking = with_attributes(tmp_path, "c", sensitive, benign, "Say {}!")
        with pytest.raises(DataLeakError, match=f"unseen attribute '{leaked}', which edit record 'a' asks for too"):
            check_no_leakage(RecordSplits([edit], [], [leaking], []))
        of_another_subject = leaking.model_copy(update={"subject": "drone"})
        check_no_leakage(RecordSplits([edit], [], [of_another_subject], []))
    in_query_text = record(tmp_path, "d", query="What is the Birth date?")
    with pytest.raises(DataLeakError, match="unseen attribute 'Birth', which edit record 'd' asks for too"):
        check_no_leakage(RecordSplits([in_query_text], [], [unseen], []))
    with pytest.raises(DataFormatError, match="needs 'sensitive_attribute' and 'benign_attribute'"):
        check_no_leakage(RecordSplits([edit], [], [record(tmp_path, "e")], []))


@pytest.mark.parametrize("known", [True, False])
def test_unseen_attributes_are_kept_out_of_the_edit(tmp_path: Path, known: bool) -> None:
    records = []
    for number in range(6):
        pairs = tuple(
            pair
            for sensitive, benign in (("number", "colour"), ("home address", "size"), ("home address", "colour"))
            for pair in with_attributes(tmp_path, f"r{number}", sensitive, benign, f"{number} {{}} {number}?").pairs
        )
        if not known:
            pairs = tuple(pair.model_copy(update={"sensitive_attribute": "", "benign_attribute": ""}) for pair in pairs)
        records.append(record(tmp_path, f"r{number}").model_copy(update={"pairs": pairs}))
    splits = split_records(records, unseen_attributes=["Home  address", "size"])
    assert [len(split) for split in splits] == [2, 4, 4, 0, 0]
    for name, words in (("edit", "number"), ("test", "number"), ("unseen_attributes", "home address")):
        assert all(words in pair.sensitive for item in getattr(splits, name) for pair in item.pairs)
    assert splits.unseen_attributes[0].pairs[0].benign_attribute == "size"
    with pytest.raises(DataFormatError, match="no query pair asks for two of the unseen attributes"):
        split_records(records, unseen_attributes=["home address"])


def test_test_split_without_new_queries_is_refused(tmp_path: Path) -> None:
    records = [with_attributes(tmp_path, f"r{number}", "number", "colour") for number in range(6)]
    same_query = [
        item.model_copy(update={"pairs": (item.pairs[0].model_copy(update={"sensitive": "What number is it?"}),)})
        for item in records
    ]
    with pytest.raises(DataFormatError, match="no query of test is left"):
        split_records(same_query)


def _turned(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.ROTATE_90)


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (lambda image: image, "again.jpg"),
        (_turned, "again.png"),
        (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "again.webp"),
        (lambda image: _turned(image).resize((150, 150)), "again.jpg"),
    ],
)
def test_an_edit_picture_that_comes_back_in_another_form_is_a_leak(
    tmp_path: Path, change: Callable[[Image.Image], Image.Image], file: str
) -> None:
    edit, fresh, other = record(tmp_path, "edit"), record(tmp_path, "fresh"), record(tmp_path, "other")
    spec = load_subject_spec("passport")
    drawn = [render(spec, seed).image for seed in (0, 1)]
    drawn[0].save(edit.image)
    drawn[1].save(other.image)
    check_no_leakage(RecordSplits([edit], [other], [], []))
    change(drawn[0]).save(tmp_path / file)
    leaking = fresh.model_copy(update={"image": tmp_path / file})
    with pytest.raises(DataLeakError, match="record 'fresh' has the same picture as edit record 'edit'"):
        check_no_leakage(RecordSplits([edit], [leaking], [], []))


def test_large_pages_that_differ_in_one_word_are_not_the_same(tmp_path: Path) -> None:
    edit, fresh = record(tmp_path, "edit"), record(tmp_path, "fresh")
    for item, word in ((edit, "483 920"), (fresh, "483 928")):
        page = Image.new("L", (1240, 1754), 255)
        for line in range(30):
            ImageDraw.Draw(page).text(
                (100, 100 + 50 * line), "number " + (word if line == 9 else "of this form"), 0, load_font("sans", 28)
            )
        page.save(item.image)
    check_no_leakage(RecordSplits([edit], [fresh], [], []))
    Image.open(edit.image).save(tmp_path / "again.jpg", quality=50)
    with pytest.raises(DataLeakError, match="same picture"):
        check_no_leakage(RecordSplits([edit], [fresh.model_copy(update={"image": tmp_path / "again.jpg"})], [], []))
