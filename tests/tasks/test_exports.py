from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.metrics.functional.mme import COGNITION, PERCEPTION
from lightning_neuralgate.tasks.exports import export_results
from tests.helpers.random_answers import random_answers
from tests.helpers.task_answers import ANSWERS, SORRY, changed, figures, mme, pope, written
from tests.metrics.functional.test_mme import official_scores as mme_tool
from tests.metrics.functional.test_pope import official as pope_script


def test_exports_match_the_owners_formats(tmp_path: Path) -> None:
    answers = changed(ANSWERS, OCR_0_png_0="Yes,\tit\nis.", random_1="Yes \ud800")
    files = export_results(written(tmp_path / "a", answers), tmp_path / "out")
    assert [file.relative_to(tmp_path / "out").as_posix() for file in files] == [
        "mme/OCR.txt", "pope/random_answers.jsonl", "pope/random_labels.jsonl"
    ]  # fmt: skip
    lines = [line.split("\t") for line in files[0].read_text(encoding="utf-8").splitlines()]
    assert lines == [
        ["0.png", "Is it 0?", "Yes", "Yes, it is."], ["0.png", "Is it 1?", "No", "no."],
        ["1.png", "Is it 0?", "Yes", "Yes"], ["1.png", "Is it 1?", "No", SORRY],
    ]  # fmt: skip
    scores, labels = ([json.loads(line) for line in file.read_text().splitlines()] for file in files[1:])
    assert scores[2] == {"question_id": 3, "question": "Is it 3?", "answer": SORRY}
    assert labels[1] == {"question_id": 2, "image": "a.png", "text": "Is it 2?", "label": "no"}
    assert [row["question_id"] for row in scores] == [row["question_id"] for row in labels]
    with pytest.raises(DataFormatError, match="holds no answers to pope or mme"):
        export_results(written(tmp_path / "b", ANSWERS[8:]), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["../../pwned", "/tmp/pwned", "..\\pwned", "OCR/../../x", "ocr"])
@pytest.mark.parametrize("field", ["subtask", "category"])
def test_exports_stay_in_their_folder(tmp_path: Path, field: str, name: str) -> None:
    own = mme("OCR", "0.png", 0, "yes", "Yes") if field == "subtask" else pope(1, "yes", "Yes")
    answers = written(tmp_path / "a", [AnsweredItem(**{**vars(own), "fields": {**own.fields, field: name}})])
    with pytest.raises(DataFormatError, match=f"item '{own.item_id}' of '{own.task}': 'fields.{field}' is "):
        export_results(answers, tmp_path / "deep" / "out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [answers / "answers.jsonl"]


def test_exports_follow_no_link_out_of_their_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pope").symlink_to(tmp_path / "mine")
    with pytest.raises(DataFormatError, match="pope is a link that leads out of"):
        export_results(written(tmp_path / "a", ANSWERS), tmp_path / "out")
    assert not list((tmp_path / "mine").iterdir())


def test_a_missing_field_of_an_export_is_named(tmp_path: Path) -> None:
    bad = AnsweredItem(**{**vars(pope(1, "yes", "Yes")), "fields": {"category": "random"}})
    with pytest.raises(
        DataFormatError, match=r"item 'random/1' of 'pope': 'fields\.question_id' has to be text, found None"
    ):
        export_results(written(tmp_path / "a", [bad]), tmp_path / "out")


@pytest.mark.parametrize("seed", range(3))
def test_the_owners_tools_compute_our_scores_from_exports(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    answers = [
        mme(subtask, f"{image}.png", line, draw.choice(("yes", "no")), said)
        for subtask in (*PERCEPTION, *COGNITION)
        for image in range(12)
        for line, said in enumerate(random_answers(2, draw.getrandbits(30)))
    ]
    answers += [pope(n, draw.choice(("yes", "no")), said) for n, said in enumerate(random_answers(200, seed))]
    answers = [AnsweredItem(**{**vars(one), "answer": one.answer.strip()}) for one in answers]
    draw.shuffle(answers)
    scores = figures(answers)
    answers.sort(key=lambda one: one.key)
    export_results(written(tmp_path / "a", answers), tmp_path / "out")
    perception, cognition = mme_tool(tmp_path / "out" / "mme", dotless=True)
    assert (scores["mme"]["perception"], scores["mme"]["cognition"]) == (
        pytest.approx(perception), pytest.approx(cognition)
    )  # fmt: skip
    said, labels = (
        [json.loads(line) for line in (tmp_path / "out" / "pope" / f"random_{kind}.jsonl").read_text().splitlines()]
        for kind in ("answers", "labels")
    )
    expected = pope_script([row["answer"] for row in said], [row["label"] for row in labels])
    assert {name: scores["pope"][name] for name in expected} == pytest.approx(expected)
