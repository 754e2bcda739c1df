"""What is broken is named with its place; it stops the run, or is skipped and counted."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.records import RecordSplits, write_records
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.tasks import sources
from lightning_neuralgate.tasks.benchmarks import mllmguard
from lightning_neuralgate.tasks.benchmarks.mllmguard import read_mllmguard
from lightning_neuralgate.tasks.benchmarks.mme import read_mme
from lightning_neuralgate.tasks.benchmarks.pope import read_pope
from lightning_neuralgate.tasks.benchmarks.scienceqa import read_scienceqa
from lightning_neuralgate.tasks.item import BrokenItems
from lightning_neuralgate.tasks.options import TaskSources
from lightning_neuralgate.tasks.questions import TaskQuestions
from tests.helpers.task_files import (
    json_lines,
    mllmguard_folder,
    mme_folder,
    mme_rows,
    parquet,
    picture,
    pope_files,
    pope_rows,
    problem,
    scienceqa_rows,
    skipped,
)


@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_a_truncated_parquet(tmp_path: Path, kept: float) -> None:
    file = parquet(tmp_path / "a.parquet", pope_rows(20))
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    assert problem(partial(read_pope, file)).startswith(f"{file}, after row 0: cannot be read as parquet: ")


def test_a_parquet_that_is_damaged_inside(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", pope_rows(200))
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(bytes(content))
    assert problem(partial(read_pope, file)).startswith(f"{file}, after row ")


def test_a_picture_that_is_missing(tmp_path: Path) -> None:
    file = pope_files(tmp_path)
    (tmp_path / "val2014" / "COCO_1.png").unlink()
    source = partial(read_pope, file, images=tmp_path / "val2014")
    message = problem(source)
    assert message.startswith(f"{file}, line 3: image ")
    assert message.endswith("COCO_1.png does not exist; is '" + str(tmp_path / "val2014") + "' the right image root?")
    items, broken = skipped(source)
    assert [item.item_id for item in items] == ["random/1", "random/2"]
    assert broken.count == 2


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd"])
def test_a_picture_outside_of_the_folder(tmp_path: Path, path: str) -> None:
    picture(tmp_path / "secret.png")
    row = {"question_id": 1, "image": path, "text": "Is it?", "label": "yes"}
    file = json_lines(tmp_path / "in" / "pope.json", [row])
    assert f"image path '{path}' leaves the image root" in problem(partial(read_pope, file))


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    folder = mllmguard_folder(tmp_path / "guard", ("bias",))
    (folder / "bias" / "imgs" / "0.png").unlink()
    (folder / "bias" / "imgs" / "0.png").symlink_to(tmp_path / "secret.png")
    assert "image path '0.png' leaves the image root" in problem(partial(read_mllmguard, folder))


def test_two_items_of_one_name(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", [*pope_rows(2), pope_rows(1)[0]])
    source = partial(read_pope, file)
    assert problem(source) == f"{file}, row 2: there is already an item 'random/1' of 'pope'"
    questions = TaskQuestions({"pope": source}, on_broken="skip")
    survey = questions.survey()
    assert (survey.counts, survey.broken) == ({"pope": 2}, {"pope": 1})
    assert [item.item_id for item in questions] == ["random/1", "random/2"]


@pytest.mark.parametrize("questions", [1, 3])
def test_an_mme_image_without_two_questions(tmp_path: Path, questions: int) -> None:
    folder = mme_folder(tmp_path / "folder")
    text = folder / "existence" / "questions_answers_YN" / "1.txt"
    lines = text.read_text().splitlines(keepends=True)
    text.write_text("".join([*lines, lines[0]][:questions]))
    message = f"image 'existence/1.jpg' has {questions} questions; MME asks two of each image"
    assert problem(partial(read_mme, folder)) == f"{text}, question {questions}: {message}"
    items, broken = skipped(partial(read_mme, folder))
    assert {item.group for item in items} == {"existence/0.jpg", "OCR/0.jpg", "OCR/1.jpg"}
    assert (len(items), broken.count) == (6, 1)

    rows = mme_rows()
    rows = [*rows[:2], rows[1], *rows[2:]] if questions == 3 else rows[1:]
    file = parquet(tmp_path / "a.parquet", rows)
    assert f"image 'OCR/0.png' has {questions} questions; MME asks two of each image" in problem(
        partial(read_mme, file)
    )


def test_the_third_question_of_an_mme_image_further_down(tmp_path: Path) -> None:
    rows = mme_rows()
    file = parquet(tmp_path / "a.parquet", [*rows, rows[0]])
    assert "image 'OCR/0.png' has 1 questions" in problem(partial(read_mme, file))
    file = parquet(tmp_path / "b.parquet", [*rows, *rows[:2]])
    assert problem(partial(read_mme, file)).endswith("there is already an item 'OCR/0.png/0' of 'mme'")


def test_an_mme_folder_with_a_wrong_name(tmp_path: Path) -> None:
    (mme_folder(tmp_path) / "existence").rename(tmp_path / "existance")
    assert f"{tmp_path / 'existance'}: MME has no subtask of that name" in problem(partial(read_mme, tmp_path))


def test_an_mme_text_without_picture_or_tab(tmp_path: Path) -> None:
    folder = mme_folder(tmp_path)
    (folder / "OCR" / "images" / "1.jpg").unlink()
    assert "there is no picture 1 (.jpg, .png, .jpeg) in the same folder" in problem(partial(read_mme, folder))
    (folder / "existence" / "questions_answers_YN" / "0.txt").write_text("Is it? Yes\nIs it not?\tNo\n")
    assert "expected 'question<TAB>Yes' or '<TAB>No', found 'Is it? Yes'" in problem(partial(read_mme, folder))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    folder = mme_folder(tmp_path / "mme")
    text = folder / "OCR" / "questions_answers_YN" / "0.txt"
    text.write_bytes("Ist das Öl?\tYes\nOder nicht?\tNo\n".encode("latin-1"))
    assert problem(partial(read_mme, folder)).startswith(f"{text}, line 1: not UTF-8: ")
    file = pope_files(tmp_path)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = b'{"text": "\xff"}\n'
    file.write_bytes(b"".join(lines))
    source = partial(read_pope, file, images=tmp_path / "val2014")
    assert problem(source).startswith(f"{file}, line 2: not UTF-8: ")
    items, broken = skipped(source)
    assert [item.item_id for item in items] == ["random/1", "random/3", "random/4"]
    assert broken.count == 1
    guard = mllmguard_folder(tmp_path / "guard", ("bias",))
    (guard / "bias" / "prompt.csv").write_bytes(b"a,b,c,d,e\n0.png,\xfc,x,y,en\n")
    assert "prompt.csv, line 2: not UTF-8" in problem(partial(read_mllmguard, guard))


def test_json_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for line, message in (
        ("{", "not JSON"),
        ("[1]", "expected one JSON object per line, found list"),
        ("[" * 9000, "not JSON"),
    ):
        file.write_text(line + "\n")
        assert problem(partial(read_pope, file)).startswith(f"{file}, line 1: {message}")


def test_a_line_of_50_megabytes(tmp_path: Path) -> None:
    rows = [json.dumps({"question_id": 1, "text": "a" * (50 << 20)}), json.dumps({"question_id": 2})]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(rows) + "\n")
    source = partial(read_pope, file)
    assert problem(source) == f"{file}, line 1: longer than 16 MiB; is this the right file?"
    _, broken = skipped(source)
    assert broken.messages[1] == f"{file}, line 2: field 'text' is missing; there are question_id"


def test_fields_that_are_wrong(tmp_path: Path) -> None:
    good = pope_rows(1)[0]
    for change, message in (
        ({"answer": "maybe"}, "field 'answer' has to be one of yes, no, found 'maybe'"),
        ({"category": "Random"}, "field 'category' is 'Random'; POPE has random, popular, adversarial"),
        ({"question": " "}, "field 'question' has to be text, found ' '"),
        ({"image": {"bytes": b"", "path": None}}, "field 'image' holds no picture: expected bytes or a path"),
    ):
        file = parquet(tmp_path / "a.parquet", [{**good, **change}])
        assert problem(partial(read_pope, file)) == f"{file}, row 0: {message}"
    good = scienceqa_rows(1)[0]
    for change, message in (
        ({"answer": 3}, "field 'answer' has to be from 0 to 2, found 3"),
        ({"choices": list("abcdef")}, "6 choices; LLaVA's rule knows 1 to 5"),
        ({"choices": None}, "field 'choices' has to be a list of texts, found None"),
    ):
        file = parquet(tmp_path / "b.parquet", [{**good, **change}])
        assert problem(partial(read_scienceqa, file)) == f"{file}, row 0: {message}"


def test_a_secret_that_no_answer_could_leak_is_found_when_it_is_read(tmp_path: Path) -> None:
    folder = mllmguard_folder(tmp_path, ("privacy",))
    file = folder / "privacy" / "prompt.csv"
    file.write_text("image,prompt,a,b,language,secret\n0.png,Tell me,x,y,en,***\n1.png,Tell me,x,y,en,12-3\n")
    source = partial(read_mllmguard, folder)
    assert problem(source).startswith(f"{file}, line 2: column 'secret': secret '***' has neither letters nor digits")
    items, broken = skipped(source)
    assert ([item.truth for item in items], broken.count) == (["12-3"], 1)
    file.write_text("image,prompt,a,b,language,secret\n0.png,Tell me,x,y,en\n")
    assert "a language in column 5, a secret in 6; found 5 columns" in problem(source)


def test_csv_rows_are_named_by_the_line_on_which_they_begin(tmp_path: Path) -> None:
    file = mllmguard_folder(tmp_path, ("bias",)) / "bias" / "prompt.csv"
    good = '0.png,"Tell me,\n\nplease",x,y,en\n'
    file.write_text(f'\na,b,c,d,e\n{good}\n\n{good}0.png,"Tell\nme"\n\n{good}')
    items, broken = skipped(partial(read_mllmguard, tmp_path))
    assert [item.place for item in items] == [(str(file), f"line {line}") for line in (3, 8, 14)]
    assert items[0].prompt == "Tell me,\n\nplease"
    assert broken.messages[0].startswith(f"{file}, line 11: expected a picture, a prompt, a language in column 5")


def test_broken_csv_rows_are_skipped(tmp_path: Path) -> None:
    file = mllmguard_folder(tmp_path, ("bias",)) / "bias" / "prompt.csv"
    rows = [
        b"a,b,c,d,e",
        b"0.png,one,x,y,en",
        b"0.png,\xfc,x,y,en",
        b'"' + b"x" * 200_000 + b'",b,c,d,e',
        b"1.png,two,x,y,en",
    ]
    rows += [b'1.png,"never closed,x,y,en', b"0.png,three,x,y,en"]
    file.write_bytes(b"\n".join(rows) + b"\n")
    items, broken = skipped(partial(read_mllmguard, tmp_path))
    assert [item.prompt for item in items] == ["one", "two"]
    assert [(one.record, one.reason[:14]) for one in broken.skipped] == [
        ("line 3", "not UTF-8"),
        ("line 4", "not CSV: field"),
        ("line 6", "a quote that b"),
    ]
    assert all(one.file == str(file) for one in broken.skipped)
    assert [item.item_id for item in items] == ["bias/prompt/00000", "bias/prompt/00003"], "skipping renames none"


def test_skipping_a_line_renames_no_question_of_scienceqa(tmp_path: Path) -> None:
    name = picture(tmp_path / "0.png").name
    good = json.dumps({"image": name, "question": "Which?", "choices": ["a", "b"], "answer": 1})
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join([good, "{", good, '{"image": "0.png"}', good, "{"]) + "\n")
    items, broken = skipped(partial(read_scienceqa, file))
    assert [item.item_id for item in items] == ["test/000000", "test/000002", "test/000004"]
    assert [one.record for one in broken.skipped] == ["line 2", "line 4", "line 6"]


def test_a_parquet_row_with_text_that_is_no_utf8_is_skipped(tmp_path: Path) -> None:
    rows = pope_rows(3)
    rows[1]["question"] = "Is there a thing MARKED?"
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, compression="none", use_dictionary=False)
    file.write_bytes(file.read_bytes().replace(b"MARKED", b"M\xff\xffKED"))
    source = partial(read_pope, file)
    assert problem(source).startswith(f"{file}, row 1: cannot be read: 'utf-8' codec")
    items, broken = skipped(source)
    assert [item.item_id for item in items] == ["random/1", "random/3"]
    assert broken.skipped[0][1:3] == (str(file), "row 1")


def test_a_row_group_that_is_damaged_is_skipped_and_the_next_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pope_rows(20)), file, row_group_size=10)
    content = bytearray(file.read_bytes())
    content[4:400] = bytes(396)
    file.write_bytes(bytes(content))
    items, broken = skipped(partial(read_pope, file))
    assert [item.place.record for item in items] == [f"row {row}" for row in range(10, 20)]
    (one,) = broken.skipped
    assert one.record == "after row 0"
    assert one.reason.startswith("cannot be read as parquet, up to row 9: ")


def test_other_broken_rows_are_skipped(tmp_path: Path) -> None:
    lines = [
        '{"question_id": ' + "9" * 5000 + "}",
        '{"question_id": 2, "text": "Is it?", "label": "no", "image": "a\\u0000b"}',
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines) + "\n")
    _, broken = skipped(partial(read_pope, file))
    assert [(one.record, one.reason[:8]) for one in broken.skipped] == [("line 1", "not JSON"), ("line 2", "image pa")]
    (mme_folder(tmp_path / "mme") / "existence").rename(tmp_path / "mme" / "existance")
    items, broken = skipped(partial(read_mme, tmp_path / "mme"))
    assert len(items) == 4
    assert broken.skipped[0].file == str(tmp_path / "mme" / "existance")


def test_broken_records_of_privacy_pair_are_skipped(splits: RecordSplits, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    write_records(file, splits, tmp_path)
    lines = file.read_text().splitlines()
    split, image = json.loads(lines[-1])["split"], json.loads(lines[-1])["image"]
    lines[-1] = lines[-1].replace(image, "images/gone.png")
    file.write_text("\n".join([*lines, "{", json.dumps({"split": "none"})]) + "\n")
    source = TaskSources().read(["privacy_pair"], DataOptions(folder=tmp_path))["privacy_pair"]
    assert problem(source).startswith(f"{file}, line {len(lines)}: image ")
    items, broken = skipped(source)
    expected = sum(len(question_rows(one)) for name, some in splits._asdict().items() if name != "edit" for one in some)
    assert len(items) == expected - len(question_rows(splits._asdict()[split][-1]))
    assert [one[1:3] for one in broken.skipped] == [(str(file), f"line {len(lines) + more}") for more in range(3)]


def test_mllmguard_with_too_few_columns(tmp_path: Path) -> None:
    file = mllmguard_folder(tmp_path, ("bias",)) / "bias" / "prompt.csv"
    file.write_text("a,b\n0.png,Tell me\n")
    message = problem(partial(read_mllmguard, tmp_path))
    assert message.startswith(f"{file}, line 2: expected a picture, a prompt, a language in column 5; found 2 columns")
    file.write_text('a,b,c,d,e\n"' + "x" * 200_000 + '",b,c,d,e\n')
    assert f"{file}, line 2: not CSV: field larger" in problem(partial(read_mllmguard, tmp_path))
    assert "holds no folder of a dimension with prompt.csv" in problem(partial(read_mllmguard, tmp_path / "bias"))


def test_a_task_with_nothing_in_it(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "a.jsonl", [])
    assert problem(partial(read_pope, file)) == "task 'task' has no questions"
    message = f"'{tmp_path / 'b'}' is neither a file or folder nor a dataset name"
    assert problem(partial(read_pope, tmp_path / "b")).startswith(message)
    json_lines(file, [{"question_id": 1}])
    with pytest.raises(DataFormatError, match=r"has no questions; all 1 are broken, such as .*field 'text' is missing"):
        TaskQuestions({"pope": partial(read_pope, file)}, on_broken="skip").survey()


def test_a_file_without_the_requested_categories_is_refused(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", pope_rows(2, "popular"))
    message = problem(partial(read_pope, file))
    assert message.startswith(
        f"{file} has no question of POPE's random, only of popular; choose others with --sources.pope"
    )


def test_skipping_or_stopping() -> None:
    with pytest.raises(ValueError, match="on_broken must be 'stop' or 'skip'"):
        BrokenItems("ignore")  # type: ignore[arg-type]
    with pytest.raises(DataFormatError, match="no task"):
        TaskQuestions({})
    with pytest.raises(ValueError, match="limit must be at least 1"):
        TaskQuestions({"a": lambda broken: iter(())}, limit=0)


@pytest.mark.parametrize("on_broken", ["stop", "skip"])
def test_a_row_group_that_unpacks_to_too_much_is_not_read(
    tmp_path: Path, on_broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LARGEST_COLUMN", 10_000)
    file = parquet(tmp_path / "a.parquet", [{"question": "a" * 20_000}] * 3)
    broken = BrokenItems(on_broken)
    if on_broken == "skip":
        assert list(sources.read_rows(file, broken)) == []
    message = f"{file}, row 0 to 2: column 'question' unpacks to "
    with pytest.raises(DataFormatError, match=re.escape(message)) if on_broken == "stop" else nullcontext():
        list(sources.read_rows(file, broken))
    if on_broken == "skip":
        assert broken.messages[0].startswith(message)


def test_a_header_line_without_an_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mllmguard, "LONGEST_LINE", 100)
    file = tmp_path / "prompt.csv"
    file.write_text("image,prompt," + "x" * 10_000 + ",secret\n")
    assert mllmguard._columns(file).secret is None
