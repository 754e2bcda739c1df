from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lightning_neuralgate.errors import DataFormatError, ResumeError
from lightning_neuralgate.runtime.run_folder import UNFINISHED, remove_progress
from lightning_neuralgate.tasks.answer_store import AnswerLog
from lightning_neuralgate.tasks.item import BROKEN_NAME
from lightning_neuralgate.tasks.runner import Answering
from lightning_neuralgate.tasks.scoring import QuestionCounts, partial_tasks, question_counts, tally_run
from tests.helpers.task_files import pope_files
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import QUIET
from tests.tasks.runs import Calls, answer, questions_in, write_data


def interrupt(folder: Path, out: Path, batches: int, **options: Any) -> None:
    """Break a run off after this number of batches."""
    model = tiny_llava()
    Calls(model, last=batches)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        answer(folder, out, model=model, use_cache=False, **options)


def resumed_rows(folder: Path, out: Path, complete: Path) -> int:
    """Finish a run as if it had not been interrupted and return the number of questions answered now."""
    model = tiny_llava()
    calls = Calls(model)
    assert answer(folder, out, model=model, use_cache=False).file.read_bytes() == complete.read_bytes()
    return calls.rows


@pytest.mark.parametrize("batches", [0, 1, 4])
def test_an_interrupted_run_resumes(data: Path, complete: Path, tmp_path: Path, batches: int) -> None:
    interrupt(data, tmp_path, batches)
    assert not (tmp_path / "answers.jsonl").exists()
    if not batches:
        assert not (tmp_path / UNFINISHED).exists(), "there is no progress"
        return
    log = tmp_path / UNFINISHED / "part-0.jsonl"
    assert len(log.read_bytes().splitlines()) == 3 * batches
    with log.open("ab") as torn:
        torn.write(b'{"task": "scienceqa", "item_id": "test/0000')
    assert resumed_rows(data, tmp_path, complete) == 21 - 3 * batches


def test_a_partially_logged_batch_is_answered_again(data: Path, complete: Path, tmp_path: Path) -> None:
    interrupt(data, tmp_path, 2)
    log = tmp_path / UNFINISHED / "part-0.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:4]))
    assert resumed_rows(data, tmp_path, complete) == 21 - 3, "the first batch is done, the second is not"
    assert Counter(log.read_bytes().splitlines()).most_common(1)[0][1] == 1, "no answer is kept twice"


def test_a_run_with_other_settings_is_refused(data: Path, tmp_path: Path) -> None:
    answer(data, tmp_path)
    with pytest.raises(ResumeError, match=r"answering\.max_new_tokens: 6 there, 5 now"):
        answer(data, tmp_path, answering=Answering(max_new_tokens=5, batch_size=3))
    with pytest.raises(ResumeError, match="model: "):
        answer(data, tmp_path, model=tiny_llava(seed=1))
    with pytest.raises(ResumeError, match="questions: "):
        answer(data, tmp_path, questions=questions_in(data, limit=2))


def test_skipped_items_are_the_same_after_a_resume(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    bad = folder / "mme" / "existence" / "images" / "0.jpg"  # among the first batches
    bad.write_bytes(b"no picture")
    with (folder / "pope" / "coco_pope_random.json").open("a") as lines:
        lines.write("{\n")
    complete = answer(folder, tmp_path / "complete", questions=questions_in(folder, on_broken="skip"), use_cache=False)
    rows = [json.loads(line) for line in (tmp_path / "complete" / BROKEN_NAME).read_text().splitlines()]
    assert [(row["task"], row["record"], row["item_id"]) for row in rows] == [
        ("pope", "line 6", ""), ("mme", "question 1", "existence/0.jpg/0"), ("mme", "question 2", "existence/0.jpg/1")
    ]  # fmt: skip
    assert rows[0]["file"] == str(folder / "pope" / "coco_pope_random.json")
    assert rows[0]["reason"].startswith("not JSON")
    assert f"picture {bad.resolve()} cannot be read" in rows[1]["reason"]
    assert complete.answered == {"pope": 5, "mme": 6, "scienceqa": 4, "mllmguard": 4}
    assert complete.missing == 0
    interrupt(folder, tmp_path / "two", 5, questions=questions_in(folder, on_broken="skip"))
    answer(folder, tmp_path / "two", questions=questions_in(folder, on_broken="skip"), use_cache=False)
    for name in (BROKEN_NAME, "answers.jsonl", "run.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "complete" / name).read_bytes()
    counts = question_counts(tmp_path / "two")
    assert counts["mme"] == QuestionCounts(available=8, asked=8, answered=6, skipped=2, missing=0)
    assert counts["pope"] == QuestionCounts(available=5, asked=5, answered=5, skipped=1, missing=0)
    bad.unlink()
    (folder / "mme" / "existence" / "questions_answers_YN" / "0.txt").unlink()
    (folder / "pope" / "coco_pope_random.json").write_text("")
    pope_files(folder / "pope", 5)
    remove_progress(tmp_path / "two" / UNFINISHED)
    answer(folder, tmp_path / "two")
    assert not (tmp_path / "two" / BROKEN_NAME).exists(), "nothing is broken any more"


def test_items_skipped_by_an_earlier_run_stop_a_strict_one(complete: Path, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    bad = folder / "mme" / "OCR" / "images" / "1.jpg"
    good = bad.read_bytes()
    bad.write_bytes(b"no picture")
    run = answer(folder, tmp_path / "out", questions=questions_in(folder, on_broken="skip"), use_cache=False)
    assert len(run.skipped) == 2
    with pytest.raises(DataFormatError, match=r"1\.jpg cannot be read"):
        answer(folder, tmp_path / "out", use_cache=False)
    bad.write_bytes(good)
    assert answer(folder, tmp_path / "out", use_cache=False).skipped == ()
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == complete.read_bytes()
    assert not (tmp_path / "out" / BROKEN_NAME).exists()


@pytest.mark.parametrize("options", [{"limit_predict_batches": 3}, {"fast_dev_run": True}])
def test_a_run_that_ends_early_is_marked_and_resumes(
    data: Path, complete: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    run = answer(data, tmp_path, Trainer(**QUIET, devices=1, **options), use_cache=False)
    batches = 1 if "fast_dev_run" in options else 3
    assert run.missing == 21 - 3 * batches
    tallies, counts = tally_run(tmp_path)
    # the third batch ends between the two questions of an image
    assert counts["mme"] == QuestionCounts(
        available=8, asked=8, answered=max(0, 3 * batches - 5), skipped=0, missing=8 - max(0, 3 * batches - 5)
    )
    assert counts["scienceqa"].answered == 0
    assert partial_tasks(counts)[-3:] == ["mme", "scienceqa", "mllmguard"]
    assert ("mme" in tallies) == (batches == 3)
    assert resumed_rows(data, tmp_path, complete) == 21 - 3 * batches
    assert partial_tasks(question_counts(tmp_path)) == []


def test_one_process_resumes_the_run_of_two(data: Path, complete: Path, tmp_path: Path) -> None:
    answer(data, tmp_path, use_cache=False)
    log = tmp_path / UNFINISHED / "part-0.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]))
    (log.parent / "part-1.jsonl").write_bytes(b"".join(lines[6:9]) + lines[9][:20])
    assert resumed_rows(data, tmp_path, complete) == 21 - 6


def test_an_incomplete_line_of_a_log_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "part-0.jsonl"
    file.write_bytes(b"x" * 200_000)
    log = AnswerLog(file)
    log.append([json.dumps({"a": 1}) + "\n"])
    log.close()
    assert file.read_bytes() == b'{"a": 1}\n'


def test_an_invalid_line_of_a_log_is_named(data: Path, tmp_path: Path) -> None:
    answer(data, tmp_path)
    log = tmp_path / UNFINISHED / "part-0.jsonl"
    log.write_bytes(b"hello\n" + log.read_bytes())
    with pytest.raises(DataFormatError, match=r"part-0\.jsonl, line 1: no answer .*; delete the line"):
        answer(data, tmp_path)


def test_a_run_that_finds_its_log_gone_stops_before_it_writes(data: Path, tmp_path: Path) -> None:
    answer(data, tmp_path, use_cache=False)
    complete = {name: (tmp_path / name).read_bytes() for name in ("answers.jsonl", "run.json")}
    for batches in (0, 3, 6):
        shutil.rmtree(tmp_path / UNFINISHED, ignore_errors=True)
        model = tiny_llava()
        Removes(model, tmp_path / UNFINISHED, batches)
        with pytest.raises(ResumeError, match=r"part-0\.jsonl was removed or replaced while this run wrote to it"):
            answer(data, tmp_path, model=model, use_cache=False)
        assert {name: (tmp_path / name).read_bytes() for name in complete} == complete


class Removes(Calls):
    """Removes a folder before one of the batches."""

    def __init__(self, model: Any, folder: Path, batch: int) -> None:
        super().__init__(model)
        generate = model.generate

        def removing(**inputs: Any) -> Any:
            if self.count == batch:
                shutil.rmtree(folder)
            return generate(**inputs)

        model.generate = removing


def test_a_run_in_use_is_refused_and_one_refused_leaves_nothing(data: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom lightning_neuralgate.runtime.run_folder import run_folder\n"
        "with run_folder(Path(sys.argv[1])):\n    print('held', flush=True)\n    input()"
    )
    words = [sys.executable, "-c", code, str(tmp_path / UNFINISHED)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(ResumeError, match=f"in use by another run .process {child.pid}, "):
            answer(data, tmp_path, use_cache=False)
        child.communicate("\n")
    interrupt(data, tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
    answer(data, tmp_path, answering=Answering(max_new_tokens=5, batch_size=3), use_cache=False)
