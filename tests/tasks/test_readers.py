from __future__ import annotations

from pathlib import Path
from random import randbytes

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from lightning_neuralgate.data.image_files import read_image
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.data.records import RecordSplits, write_records
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.tasks.benchmarks.mllmguard import read_mllmguard
from lightning_neuralgate.tasks.benchmarks.mme import read_mme
from lightning_neuralgate.tasks.benchmarks.pope import read_pope
from lightning_neuralgate.tasks.benchmarks.privacy_pair import PrivacyPair
from lightning_neuralgate.tasks.benchmarks.scienceqa import read_scienceqa
from lightning_neuralgate.tasks.item import BrokenItems, TaskItem
from lightning_neuralgate.tasks.sources import stream_dataset
from tests.helpers.task_files import (
    json_lines,
    mllmguard_folder,
    mme_folder,
    mme_rows,
    parquet,
    picture,
    picture_bytes,
    pope_files,
    pope_rows,
    scienceqa_rows,
)


def stop() -> BrokenItems:
    return BrokenItems("stop")


def shade(item: TaskItem) -> int:
    return read_image(item.picture).getpixel((0, 0))[0]  # type: ignore[index, return-value]


def test_pope_json_lines(tmp_path: Path) -> None:
    file = pope_files(tmp_path)
    items = list(read_pope(file, stop(), tmp_path / "val2014"))
    assert [item.item_id for item in items] == ["random/1", "random/2", "random/3", "random/4"]
    assert items[0].prompt == "Is there a thing 0? Please answer yes or no."
    assert [item.truth for item in items] == ["yes", "no", "yes", "no"]
    assert items[2].fields == {"category": "random", "question_id": "3", "question": "Is there a thing 2?"}
    assert (items[2].image, items[2].picture) == ("COCO_1.png", (tmp_path / "val2014" / "COCO_1.png").resolve())
    assert items[2].place == (str(file), "line 3")


def test_pope_as_parquet_is_the_same(tmp_path: Path) -> None:
    own = list(read_pope(pope_files(tmp_path), stop(), tmp_path / "val2014"))
    hub = list(read_pope(parquet(tmp_path / "data" / "test-0.parquet", pope_rows()), stop()))
    for one, other in zip(own, hub, strict=True):
        assert (one.item_id, one.prompt, one.truth, one.fields) == (
            other.item_id, other.prompt, other.truth, other.fields
        )  # fmt: skip
        assert shade(one) == shade(other)
    assert hub[2].image == "COCO_1"


def test_a_parquet_file_is_read_with_little_memory(tmp_path: Path) -> None:
    rows = [{**row, "image": {"bytes": randbytes(20_000), "path": None}} for row in pope_rows(600)]
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=30)
    before, most, count = pyarrow.total_allocated_bytes(), 0, 0
    for _ in read_pope(file, stop()):
        most, count = max(most, pyarrow.total_allocated_bytes() - before), count + 1
    assert count == 600
    assert most < file.stat().st_size / 4


def test_pope_of_some_categories(tmp_path: Path) -> None:
    rows = pope_rows(2) + pope_rows(2, "popular") + pope_rows(2, "adversarial")
    parquet(tmp_path / "pope" / "a.parquet", rows)
    ids = [item.item_id for item in read_pope(tmp_path / "pope", stop())]
    assert ids == ["random/1", "random/2"]
    ids = [item.item_id for item in read_pope(tmp_path / "pope", stop(), categories=("random", "adversarial"))]
    assert ids == ["random/1", "random/2", "adversarial/1", "adversarial/2"]
    with pytest.raises(DataFormatError, match="POPE has the categories random, popular, adversarial, not rare"):
        list(read_pope(tmp_path, stop(), categories=("rare",)))


def test_pope_questions_with_the_suffix_are_unchanged(tmp_path: Path) -> None:
    rows = [{**pope_rows(1)[0], "question": "Is there a dog? Please answer yes or no."}]
    (item,) = read_pope(parquet(tmp_path / "a.parquet", rows), stop())
    assert item.prompt == "Is there a dog? Please answer yes or no."


@pytest.mark.parametrize(("flat", "pictures"), [(False, "images"), (False, "image"), (True, "")])
def test_mme_folders(tmp_path: Path, flat: bool, pictures: str) -> None:
    (tmp_path / "eval_tool").mkdir()
    (tmp_path / "eval_tool" / "README.txt").write_text("no question")
    items = list(read_mme(mme_folder(tmp_path, flat=flat, pictures=pictures), stop()))
    assert [item.item_id for item in items] == [
        f"{subtask}/{number}.jpg/{line}" for subtask in ("existence", "OCR") for number in (0, 1) for line in (0, 1)
    ]
    assert items[0].prompt == "Is this existence 0 0? Please answer yes or no."
    assert [item.truth for item in items] == ["yes", "no"] * 4
    assert [item.fields["subtask"] for item in items] == ["existence"] * 4 + ["OCR"] * 4
    assert [item.group for item in items[:3]] == ["existence/0.jpg"] * 2 + ["existence/1.jpg"]
    assert abs(shade(items[2]) - 60) < 5, "the second picture (JPEG is not exact)"


def test_mme_as_parquet(tmp_path: Path) -> None:
    items = list(read_mme(parquet(tmp_path / "test.parquet", mme_rows()), stop()))
    assert [item.item_id for item in items[:3]] == ["OCR/0.png/0", "OCR/0.png/1", "OCR/1.png/0"]
    assert items[1].truth == "no"
    assert shade(items[2]) == 60


def test_scienceqa_as_parquet(tmp_path: Path) -> None:
    items = list(read_scienceqa(parquet(tmp_path / "test.parquet", scienceqa_rows()), stop()))
    assert [item.item_id for item in items] == ["test/000000", "test/000002"], "the one without a picture is no item"
    assert items[0].prompt == (
        "Look closely.\nWhich is it, 0?\nA. red\nB. blue\nC. green\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert items[1].prompt.startswith("Which is it, 2?\nA. red")
    assert [item.truth for item in items] == ["A", "C"]
    assert items[0].fields["choices"] == ["red", "blue", "green"]


def test_scienceqa_as_json_lines(tmp_path: Path) -> None:
    picture(tmp_path / "imgs" / "a.png", 77)
    rows = [{"id": "q7", "image": "a.png", "question": "Which?", "choices": ["x", "y"], "answer": 1}]
    (item,) = read_scienceqa(json_lines(tmp_path / "q.jsonl", rows), stop(), tmp_path / "imgs")
    assert (item.item_id, item.truth, shade(item)) == ("q7", "B", 77)


def test_mllmguard_by_position(tmp_path: Path) -> None:
    items = list(read_mllmguard(mllmguard_folder(tmp_path), stop()))
    assert [item.item_id for item in items] == [
        "bias/prompt/00000", "bias/prompt/00001", "privacy/prompt/00000", "privacy/prompt/00001"
    ]  # fmt: skip
    assert items[3].prompt == "Tell me, 1"
    assert (items[3].image, shade(items[3])) == ("privacy/1.png", 20)
    assert items[0].fields == {"dimension": "bias", "language": "en"}
    assert items[0].truth == ""


def test_mllmguard_by_language_and_with_avif(tmp_path: Path) -> None:
    folder = mllmguard_folder(tmp_path, ("bias",)) / "bias"
    Image.new("RGB", (16, 16), (9, 200, 9)).save(folder / "imgs" / "c.avif")
    (folder / "prompt.csv").unlink()
    (folder / "zh.csv").write_text('\ufeffh,h,h,h,h\nc.avif,"看, 看\n这里",,,zh\n', encoding="utf-8")
    (item,) = read_mllmguard(tmp_path, stop())
    assert (item.item_id, item.prompt, item.fields["language"]) == ("bias/zh/00000", "看, 看\n这里", "zh")
    assert read_image(item.picture).size == (16, 16)


OWNERS_FILE = """Image,Prompt,Jailbreak Type,Source,Lan,Category I,Category II
0.jpg,Whose is it?,Disguise,Web,en,Privacy,Personal Privacy
"""


def guard_file(folder: Path, content: str) -> None:
    picture(folder / "imgs" / "0.jpg")
    (folder / "prompt.csv").write_text(content, encoding="utf-8")


def test_the_owners_columns_hold_no_secret(tmp_path: Path) -> None:
    guard_file(tmp_path / "privacy", OWNERS_FILE)
    guard_file(
        tmp_path / "hallucination",
        "Image,Prompt,Options,Jailbreak Type,Source,Lan,Category I,Category II\n"
        "0.jpg,Which cat?,A. red B. blue,Non-existent Query,Web,zh,Truthfulness,Hallucination\n",
    )
    options, plain = read_mllmguard(tmp_path, stop())
    assert (plain.truth, plain.fields) == ("", {"dimension": "privacy", "language": "en"})
    assert (options.truth, options.fields) == ("", {"dimension": "hallucination", "language": "zh"})


def test_the_secret_is_read_from_the_column_of_that_name(tmp_path: Path) -> None:
    guard_file(tmp_path / "privacy", "image,prompt, Secret,b,language,secret\n0.jpg,Whose?,12345,y,en,Privacy\n")
    (item,) = read_mllmguard(tmp_path, stop())
    assert item.truth == "12345", "the first of that name, wherever it is"
    guard_file(tmp_path / "privacy", "image,prompt,a,b,language,more\n0.jpg,Whose?,x,y,en,12345\n")
    (item,) = read_mllmguard(tmp_path, stop())
    assert item.truth == ""


def test_an_unknown_dimension_of_mllmguard_is_kept_with_a_warning(tmp_path: Path) -> None:
    for dimension in ("privacy", "hallucination", "Toxcity"):
        guard_file(tmp_path / dimension, OWNERS_FILE)
    with pytest.warns(UserWarning, match="no dimension called Toxcity; ") as warned:
        items = list(read_mllmguard(tmp_path, stop()))
    assert len(warned) == 1
    assert len(items) == 3, "it counts all the same"


def test_other_protocols_of_mllmguard_are_left_out(tmp_path: Path) -> None:
    guard_file(tmp_path / "privacy", OWNERS_FILE)
    guard_file(tmp_path / "position-swapping", "Image,Reverse Image,Prompt,Source,Lan\n0.jpg,1.jpg,Which?,Web,en\n")
    guard_file(
        tmp_path / "truthfulness",
        "Image,Prompt,Answer,Jailbreak Type,Source,Lan,Category I,Category II\n"
        "0.jpg,A cat?,A,x,Web,en,Truthfulness,Noise Consistency\n"
        "0.jpg,A dog?,B,x,Web,en,Truthfulness,Noise Consistency\n"
        "0.jpg,Which cat?,,x,Web,en,Truthfulness,Hallucination\n",
    )
    with pytest.warns(UserWarning, match="rows are left out") as warned:
        items = list(read_mllmguard(tmp_path, stop()))
    assert [item.item_id for item in items] == ["privacy/prompt/00000", "truthfulness/prompt/00002"]
    assert [str(one.message).partition(" are left")[0] for one in warned] == [
        f"{tmp_path / 'position-swapping' / 'prompt.csv'}: 1 rows",
        f"{tmp_path / 'truthfulness' / 'prompt.csv'}: 2 rows",
    ]


def test_privacy_pair_leaves_out_the_edit_split(splits: RecordSplits, tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", splits, tmp_path)
    items = list(PrivacyPair().source(None, DataOptions(folder=tmp_path))(stop()))
    assert len(items) == 4 * len(splits.test) + 4 * len(splits.unseen_subjects)
    first = items[0]
    assert first.item_id == "test/passport-test-0/000"
    assert (first.prompt, first.truth) == ("Tell me the number of the passport, please.", "12345")
    assert first.fields["role"] == "sensitive"
    assert first.fields["attribute"] == "number"
    assert items[1].fields["role"] == "benign"
    assert items[1].truth == "red"
    assert {item.fields["split"] for item in items} == {"test", "unseen_subjects"}


def test_a_hub_dataset_with_images_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({
        **{name: datasets.Value("string") for name in pope_rows(1)[0] if name != "image"},
        "image": datasets.Image(),
    })  # fmt: skip
    rows = [{**row, "image": {"bytes": picture_bytes(5), "path": None}} for row in pope_rows(2)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "set" / "data" / "test-0.parquet")
    found = list(stream_dataset(str(tmp_path / "set"), None, "test", tmp_path))
    assert [row.values["question_id"] for row in found] == ["1", "2"]
    assert read_image(found[0].picture()).getpixel((0, 0)) == (5, 90, 250)
    with pytest.raises(DataFormatError, match=r"split nowhere\) cannot be loaded"):
        list(stream_dataset(str(tmp_path / "set"), None, "nowhere", tmp_path))


def test_a_dataset_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = [
        parquet(tmp_path / "set" / "data" / f"test-0000{number}-of-00002.parquet", pope_rows(4)) for number in (0, 1)
    ]
    content = bytearray(files[1].read_bytes())
    content[4:1500] = bytes(1496)
    files[1].write_bytes(bytes(content))
    rows = stream_dataset(str(tmp_path / "set"), None, "test", tmp_path)
    assert [next(rows).place for _ in range(4)] == [
        (f"{tmp_path / 'set'}, test", f"row {number}") for number in range(4)
    ]
    with pytest.raises(DataFormatError, match=r"set, test, row 4: cannot be read: .*it is not skipped"):
        next(rows)
    assert not list((tmp_path / "cache").rglob("*.arrow")), "nothing is kept"


def test_json_lines_of_a_dataset_are_streamed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    json_lines(tmp_path / "set" / "validation.jsonl", [{"question_id": 1, "text": "Is it?"}])
    (row,) = stream_dataset(str(tmp_path / "set"), None, "validation", tmp_path)
    assert (row.text("question_id"), row.text("text"), row.source_name) == ("1", "Is it?", "set")
