"""The runner: every question once, in whatever company, by whatever number of processes, after whatever break."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.errors import DataFormatError, ResumeError
from lightning_neuralgate.evaluation.rates import summarize
from lightning_neuralgate.evaluation.run import evaluate
from lightning_neuralgate.hf.generation import PAPER_SAMPLING, seeded_sampling
from lightning_neuralgate.runtime.answer_cache import AnswerCache
from lightning_neuralgate.runtime.resume import remove_progress
from lightning_neuralgate.tasks.account import Account, accounts, partial_tasks, tally_run
from lightning_neuralgate.tasks.answer_store import AnswerLog, read_answered
from lightning_neuralgate.tasks.benchmarks.privacy_pair import privacy_pair_items
from lightning_neuralgate.tasks.item import BROKEN_NAME
from lightning_neuralgate.tasks.questions import QuestionBatches, TaskQuestions
from lightning_neuralgate.tasks.runner import UNFINISHED, Answering, TaskAnswering, TaskRun, answer_tasks
from lightning_neuralgate.tasks.scores import task_scores
from lightning_neuralgate.tasks.scoring import tally_answers
from tests.helpers.launch import launch
from tests.helpers.task_files import pope_files
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.tasks.runs import answer, questions_in, trainer_of, write_data

SAMPLED = Answering(max_new_tokens=6, batch_size=3, sampling=PAPER_SAMPLING)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of a run that nothing disturbed."""
    return answer(data, tmp_path_factory.mktemp("whole"), use_cache=False).file


class Calls:
    """Counts calls of `generate`, and breaks off at one of them."""

    def __init__(self, model: Any, last: int | None = None) -> None:
        self.count, self.rows, generate = 0, 0, model.generate

        def counted(**inputs: Any) -> Any:
            if last is not None and self.count == last:
                raise KeyboardInterrupt
            self.count += 1
            self.rows += len(inputs["input_ids"])
            return generate(**inputs)

        model.generate = counted


def test_every_question_is_answered_once_and_in_order(data: Path, whole: Path) -> None:
    answers = list(read_answered(whole))
    keys = [one.key for one in answers]
    assert keys == sorted(keys)
    assert Counter(one.task for one in answers) == {"pope": 5, "mme": 8, "scienceqa": 4, "mllmguard": 4}
    items = {(item.task, item.item_id): item for item in questions_in(data)}
    rows = [QueryRow(item.prompt, "benign", item.picture) for item in items.values()]
    told = dict(zip(items, answer_rows(tiny_llava(), tiny_processor(), rows, 6, batch_size=1), strict=True))
    for one in answers:
        assert one == items[one.key].answered(told[one.key])
    assert len({one.answer for one in answers}) > 3
    assert all(byte < 128 for byte in whole.read_bytes())


@pytest.mark.parametrize("batches", [0, 1, 4])
def test_a_broken_run_is_gone_on_with(data: Path, whole: Path, tmp_path: Path, batches: int) -> None:
    model = tiny_llava()
    calls = Calls(model, last=batches)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        answer(data, tmp_path, model=model, use_cache=False)
    assert not (tmp_path / "answers.jsonl").exists()
    log = tmp_path / UNFINISHED / "part-0.jsonl"
    assert len(log.read_bytes().splitlines()) == 3 * batches
    with log.open("ab") as torn:
        torn.write(b'{"task": "scienceqa", "item_id": "test/0000')
    model = tiny_llava()
    calls = Calls(model)
    answer(data, tmp_path, model=model, use_cache=False)
    assert calls.rows == 21 - 3 * batches
    assert (tmp_path / "answers.jsonl").read_bytes() == whole.read_bytes()


def test_a_batch_that_was_half_written_is_answered_whole(data: Path, whole: Path, tmp_path: Path) -> None:
    model = tiny_llava()
    Calls(model, last=2)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        answer(data, tmp_path, model=model, use_cache=False)
    log = tmp_path / UNFINISHED / "part-0.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:4]))
    model = tiny_llava()
    calls = Calls(model)
    answer(data, tmp_path, model=model, use_cache=False)
    assert calls.rows == 21 - 3, "the first batch is done, the second is not"
    assert (tmp_path / "answers.jsonl").read_bytes() == whole.read_bytes()
    assert Counter(log.read_bytes().splitlines()).most_common(1)[0][1] == 1, "no answer is kept twice"


def test_another_run_is_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    answer(data, tmp_path)
    with pytest.raises(ResumeError, match=r"answering\.max_new_tokens: 6 there, 5 now"):
        answer(data, tmp_path, answering=Answering(max_new_tokens=5, batch_size=3))
    with pytest.raises(ResumeError, match="model: "):
        answer(data, tmp_path, model=tiny_llava(seed=1))
    with pytest.raises(ResumeError, match="questions: "):
        answer(data, tmp_path, questions=questions_in(data, limit=2))


@pytest.mark.parametrize("answering", [Answering(max_new_tokens=6, batch_size=3), SAMPLED])
def test_answers_that_were_given_before_come_from_the_cache(data: Path, tmp_path: Path, answering: Answering) -> None:
    model = tiny_llava()
    first, calls = answer(data, tmp_path / "1", model=model, answering=answering).file, Calls(model)
    assert answer(data, tmp_path / "2", model=model, answering=answering).file.read_bytes() == first.read_bytes()
    assert calls.count == 0
    answer(data, tmp_path / "3", model=model, answering=answering, use_cache=False)
    assert calls.rows == 21
    other = tiny_llava(seed=1)
    calls = Calls(other)
    answer(data, tmp_path / "4", model=other, answering=answering)
    assert calls.rows == 21, "another model"
    calls = Calls(model)
    longer = Answering(7, answering.sampling, batch_size=3)
    answer(data, tmp_path / "5", model=model, answering=longer)
    assert calls.rows == 21, "longer answers"


def test_answers_are_not_taken_from_another_processor_or_ending(data: Path, tmp_path: Path) -> None:
    def asked(name: str, model: Any, processor: Any) -> int:
        calls = Calls(model)
        answer_tasks(
            model, processor, questions_in(data), tmp_path / name, trainer_of(), Answering(max_new_tokens=2, batch_size=8)
        )  # fmt: skip
        return calls.rows

    assert asked("first", tiny_llava(), tiny_processor()) == 21
    assert asked("again", tiny_llava(), tiny_processor()) == 0
    wordier = tiny_processor()
    wordier.tokenizer.add_tokens(["passport"])
    assert asked("another tokenizer", tiny_llava(), wordier) == 21
    shorter = tiny_llava()
    shorter.generation_config.eos_token_id = [2, 5]
    assert asked("another end", shorter, tiny_processor()) == 21
    beams = tiny_llava()
    beams.generation_config.num_beams = 3
    assert asked("settings that do not count", beams, tiny_processor()) == 0
    told = json.loads((tmp_path / "another end" / "run.json").read_text())["settings"]["generation"]
    assert {name: told[name] for name in ("do_sample", "num_beams", "eos_token_id")} == {
        "do_sample": False, "num_beams": 1, "eos_token_id": [2, 5]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 1, got -1"),
        ({"sampling": {"temperature": -0.5}}, "temperature must be above 0, got -0.5"),
        ({"sampling": {"temperature": 0}}, "leave sampling out for greedy answers"),
        ({"sampling": {"top_p": 1.5}}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"sampling": {"top_p": 0.0}}, "top_p must be above 0 and at most 1, got 0.0"),
    ],
)
def test_ways_of_answering_that_cannot_be(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        Answering(**options)


def test_a_cache_that_is_broken(data: Path, tmp_path: Path) -> None:
    file = AnswerCache({}).file
    file.write_text("no data base, but long enough to be read as the header of one" * 20)
    with pytest.raises(DataFormatError, match=r"answers\.sqlite cannot be used .* or run with --cache false"):
        answer(data, tmp_path)


def test_sampled_answers_do_not_depend_on_company_or_seed_of_others(data: Path, tmp_path: Path) -> None:
    told = {}
    for size in (1, 3, 8):
        torch.manual_seed(size)
        answering = Answering(6, PAPER_SAMPLING, batch_size=size, share_prefixes=size > 1)
        file = answer(data, tmp_path / str(size), answering=answering, use_cache=False).file
        told[size] = {one.key: one.answer for one in read_answered(file)}
    assert told[1] == told[3] == told[8]
    other = Answering(6, PAPER_SAMPLING, seed=1, batch_size=8)
    again = answer(data, tmp_path / "other", answering=other, use_cache=False).file
    changed = sum(one.answer != told[8][one.key] for one in read_answered(again))
    assert changed > 15, "another seed gives other answers"


def test_sampling_draws_from_the_distribution() -> None:
    ids = torch.tensor([[1, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    counts = Counter(
        int(seeded_sampling({"top_p": 0.9}, batch, [seed])["logits_processor"](ids, scores).argmax())
        for seed in range(4000)
    )
    # 0.9 of the mass is the first three; the fourth is never drawn
    assert counts[3] == 0
    for token, share in enumerate((0.5, 0.3, 0.15)):
        assert counts[token] / 4000 == pytest.approx(share / 0.95, abs=0.03)


def test_sampling_penalizes_what_was_said_and_not_padding() -> None:
    ids = torch.tensor([[0, 0, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1]])}
    process = seeded_sampling({"repetition_penalty": 2.0}, batch, [7])["logits_processor"]
    plain = seeded_sampling({}, batch, [7])["logits_processor"]
    scores = torch.tensor([[4.0, 4.0, 4.0]])
    assert (process(ids, scores) - plain(ids, scores)).tolist() == [[0.0, 0.0, -2.0]]
    said = torch.tensor([[0, 0, 2, 1]])
    assert (process(said, scores) - plain(said, scores)).tolist() == [[0.0, -2.0, -2.0]]
    with pytest.raises(ValueError, match="not num_beams"):
        seeded_sampling({"num_beams": 2}, batch, [1])


def test_pictures_that_cannot_be_read(data: Path, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    bad = folder / "mme" / "OCR" / "images" / "1.jpg"
    bad.write_bytes(b"no picture")
    with pytest.raises(
        DataFormatError, match=r"1\.txt, question 1: record OCR/1.jpg/0: picture .*1.jpg cannot be read"
    ):
        answer(folder, tmp_path / "stop")
    done = answer(folder, tmp_path / "skip", questions=questions_in(folder, on_broken="skip"))
    assert sorted(done.unreadable) == ["mme OCR/1.jpg/0", "mme OCR/1.jpg/1"]
    assert "cannot be read" in done.unreadable["mme OCR/1.jpg/0"]
    expected = [one.key for one in read_answered(answer(data, tmp_path / "whole").file) if "OCR/1" not in one.item_id]
    assert [one.key for one in read_answered(done.file)] == expected


def test_what_is_skipped_keeps_its_place_when_a_broken_run_is_gone_on_with(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    bad = folder / "mme" / "existence" / "images" / "0.jpg"  # among the first batches
    bad.write_bytes(b"no picture")
    with (folder / "pope" / "coco_pope_random.json").open("a") as lines:
        lines.write("{\n")
    whole = answer(folder, tmp_path / "whole", questions=questions_in(folder, on_broken="skip"), use_cache=False)
    rows = [json.loads(line) for line in (tmp_path / "whole" / BROKEN_NAME).read_text().splitlines()]
    assert [(row["task"], row["record"], row["item_id"]) for row in rows] == [
        ("pope", "line 6", ""), ("mme", "question 1", "existence/0.jpg/0"), ("mme", "question 2", "existence/0.jpg/1")
    ]  # fmt: skip
    assert rows[0]["file"] == str(folder / "pope" / "coco_pope_random.json")
    assert rows[0]["reason"].startswith("not JSON")
    assert f"picture {bad.resolve()} cannot be read" in rows[1]["reason"]
    assert whole.answered == {"pope": 5, "mme": 6, "scienceqa": 4, "mllmguard": 4}
    assert whole.missing == 0
    model = tiny_llava()
    Calls(model, last=5)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        answer(folder, tmp_path / "two", model=model, questions=questions_in(folder, on_broken="skip"), use_cache=False)
    answer(folder, tmp_path / "two", questions=questions_in(folder, on_broken="skip"), use_cache=False)
    for name in (BROKEN_NAME, "answers.jsonl", "run.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    told = accounts(tmp_path / "two")
    assert told["mme"] == Account(available=8, asked=8, answered=6, skipped=2, missing=0)
    assert told["pope"] == Account(available=5, asked=5, answered=5, skipped=1, missing=0)
    bad.unlink()
    (folder / "mme" / "existence" / "questions_answers_YN" / "0.txt").unlink()
    (folder / "pope" / "coco_pope_random.json").write_text("")
    pope_files(folder / "pope", 5)
    remove_progress(tmp_path / "two" / UNFINISHED)
    answer(folder, tmp_path / "two")
    assert not (tmp_path / "two" / BROKEN_NAME).exists(), "nothing is broken any more"


def test_what_an_earlier_start_skipped_stops_one_that_is_to_stop(whole: Path, tmp_path: Path) -> None:
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
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == whole.read_bytes()
    assert not (tmp_path / "out" / BROKEN_NAME).exists()


def test_what_the_processor_cannot_take(tmp_path: Path) -> None:
    usual: Any = tiny_processor().image_processor.__class__

    class Particular(usual):
        def __call__(self, images: Any, *args: Any, **options: Any) -> Any:
            if images[0].size == (3, 1):
                raise RuntimeError("absolute aspect ratio must be smaller than 2")
            return super().__call__(images, *args, **options)

    folder = write_data(tmp_path / "data")
    Image.new("RGB", (3, 1)).save(folder / "mllmguard" / "bias" / "imgs" / "0.png")
    odd = {"question_id": 9, "image": "COCO_0.png", "text": "Is it \ud800?", "label": "no"}
    with (folder / "pope" / "coco_pope_random.json").open("a") as lines:
        lines.write(json.dumps(odd) + "\n")
    processor = tiny_processor()
    processor.image_processor = Particular(**{
        name: getattr(processor.image_processor, name) for name in ("size", "crop_size")
    })  # fmt: skip

    def asked(out: Path, **options: Any) -> TaskRun:
        questions, answering = questions_in(folder, **options), Answering(max_new_tokens=2, batch_size=3)
        return answer_tasks(tiny_llava(), processor, questions, out, trainer_of(), answering, use_cache=False)

    with pytest.raises(DataFormatError, match=r"line 6: the processor cannot take this question: "):
        asked(tmp_path / "stop")
    run = asked(tmp_path / "skip", on_broken="skip")
    assert sorted(run.unreadable) == ["mllmguard bias/prompt/00000", "pope random/9"]
    assert "absolute aspect ratio" in run.unreadable["mllmguard bias/prompt/00000"]
    assert sum(run.answered.values()) == 20
    assert run.missing == 0


def test_a_picture_that_vanishes_after_the_questions_were_counted(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    questions = questions_in(folder, on_broken="skip")
    item = next(one for one in questions if one.task == "mllmguard")
    questions.sources = {"mllmguard": lambda broken: iter([item])}
    (folder / "mllmguard" / "bias" / "imgs" / "0.png").unlink()
    (batch,) = QuestionBatches(questions, tiny_processor(), 3)
    assert "0.png cannot be read: [Errno 2] No such file" in batch["broken"][0].reason
    questions.on_broken = "stop"
    with pytest.raises(
        DataFormatError, match=r"prompt\.csv, line 2: record bias/prompt/00000: picture .*0\.png cannot be read"
    ):
        next(iter(QuestionBatches(questions, tiny_processor(), 3)))


@pytest.mark.parametrize("options", [{"limit_predict_batches": 3}, {"fast_dev_run": True}])
def test_a_run_that_ends_early_is_marked_and_gone_on_with(
    data: Path, whole: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    quiet: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    run = answer(data, tmp_path, Trainer(**quiet, **options, enable_model_summary=False), use_cache=False)
    batches = 1 if "fast_dev_run" in options else 3
    assert run.missing == 21 - 3 * batches
    tallies, told = tally_run(tmp_path)
    # the third batch ends between the two questions of an image
    assert told["mme"] == Account(
        available=8, asked=8, answered=max(0, 3 * batches - 5), skipped=0, missing=8 - max(0, 3 * batches - 5)
    )
    assert told["scienceqa"].answered == 0
    assert partial_tasks(told)[-3:] == ["mme", "scienceqa", "mllmguard"]
    assert ("mme" in tallies) == (batches == 3)
    answer(data, tmp_path, use_cache=False)
    assert (tmp_path / "answers.jsonl").read_bytes() == whole.read_bytes()
    assert partial_tasks(accounts(tmp_path)) == []


def test_a_description_of_a_run_that_is_none(data: Path, tmp_path: Path) -> None:
    answer(data, tmp_path)
    lines = (tmp_path / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text("".join(lines[:-1]))
    assert partial_tasks(tally_run(tmp_path)[1]) == ["scienceqa"], "answers that somebody took away are missed"
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(DataFormatError, match=r"run\.json is not what a run over tasks leaves there"):
        tally_run(tmp_path)
    (tmp_path / "run.json").unlink()
    assert tally_run(tmp_path)[1] == {}, "nobody knows"


def test_a_limit_takes_whole_groups_of_all_kinds(data: Path) -> None:
    questions = questions_in(data, limit=5)
    assert questions.survey().counts == {"pope": 5, "mme": 4, "scienceqa": 4, "mllmguard": 4}
    mme = [item for item in questions if item.task == "mme"]
    assert Counter(item.group for item in mme).most_common() == [(mme[0].group, 2), (mme[2].group, 2)]
    smallest = questions_in(data, limit=1)
    assert smallest.survey().counts == {"pope": 1, "mme": 2, "scienceqa": 1, "mllmguard": 1}, "no image is cut in half"
    assert {item.item_id for item in smallest} <= {item.item_id for item in questions}


def test_batches_are_the_same_for_any_number_of_processes(data: Path) -> None:
    questions, processor = questions_in(data), tiny_processor()
    questions.survey()

    def batches(world: int, done: frozenset[tuple[str, str]] = frozenset()) -> list[list[tuple[str, ...]]]:
        shares = [QuestionBatches(questions, processor, 4, done, rank, world) for rank in range(world)]
        lists = [list(share.loader()) for share in shares]
        assert len({len(one) for one in lists}) == 1, "all have equally many"
        return [
            sorted(tuple(item.item_id for item in batch["items"]) for batch in one if batch["counted"]) for one in lists
        ]

    (one,) = batches(1)
    assert len(one) == 6
    for world in (2, 4, 5, 7):
        assert sorted(batch for share in batches(world) for batch in share) == one
    first = [*questions][:4]
    done = frozenset((item.task, item.item_id) for item in first)
    assert sorted(batch for share in batches(2, done) for batch in share) == sorted(
        batch for batch in one if batch != tuple(item.item_id for item in first)
    )


def test_workers_change_nothing(data: Path, whole: Path, tmp_path: Path) -> None:
    assert answer(data, tmp_path, use_cache=False, num_workers=2).file.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_answer_as_one(data: Path, whole: Path, tmp_path: Path, strategy: str) -> None:
    launch("-m", "tests.tasks.runs", strategy, str(data), str(tmp_path / "two"), world=2)
    assert (tmp_path / "two" / "answers.jsonl").read_bytes() == whole.read_bytes()
    logs = [tmp_path / "two" / UNFINISHED / f"part-{rank}.jsonl" for rank in range(2)]
    assert [len(log.read_bytes().splitlines()) for log in logs] == [12, 9]


@pytest.mark.slow
def test_two_processes_sample_as_one(data: Path, tmp_path: Path) -> None:
    launch("-m", "tests.tasks.runs", "ddp", str(data), str(tmp_path / "two"), "--sample", world=2)
    one = answer(data, tmp_path / "one", answering=SAMPLED, use_cache=False).file
    assert (tmp_path / "two" / "answers.jsonl").read_bytes() == one.read_bytes()


def test_one_process_goes_on_where_two_were(data: Path, whole: Path, tmp_path: Path) -> None:
    answer(data, tmp_path, use_cache=False)
    log = tmp_path / UNFINISHED / "part-0.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]))
    (log.parent / "part-1.jsonl").write_bytes(b"".join(lines[6:9]) + lines[9][:20])
    model = tiny_llava()
    calls = Calls(model)
    answer(data, tmp_path, model=model, use_cache=False)
    assert calls.rows == 21 - 6
    assert (tmp_path / "answers.jsonl").read_bytes() == whole.read_bytes()


def test_a_log_without_a_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "part-0.jsonl"
    file.write_bytes(b"x" * 200_000)
    log = AnswerLog(file)
    log.append([json.dumps({"a": 1}) + "\n"])
    log.close()
    assert file.read_bytes() == b'{"a": 1}\n'


def test_a_log_that_somebody_wrote_into(data: Path, tmp_path: Path) -> None:
    answer(data, tmp_path)
    log = tmp_path / UNFINISHED / "part-0.jsonl"
    log.write_bytes(b"hello\n" + log.read_bytes())
    with pytest.raises(DataFormatError, match=r"part-0\.jsonl, line 1: no answer .*; delete the line"):
        answer(data, tmp_path)


def test_privacy_pair_has_the_rates_of_evaluate(splits: RecordSplits, tmp_path: Path) -> None:
    tested = {"test": splits.test, "unseen_subjects": splits.unseen_subjects}
    questions = TaskQuestions({"privacy_pair": partial(privacy_pair_items, splits._asdict(), tmp_path)})
    run = answer(tmp_path, tmp_path / "out", questions=questions)
    told = task_scores(tally_answers(read_answered(run.file)), "", resamples=10)["tasks"]["privacy_pair"]["figures"]
    answers = evaluate(tiny_llava(), tiny_processor(), tested, tmp_path, "tiny", max_new_tokens=6, share_prefixes=False)
    expected = {
        f"{split}/{name}": value
        for split, rates in summarize(answers).items()
        for name, value in rates.items()
        if name != "n"
    }
    assert told == pytest.approx(expected)


def test_the_module_answers_without_a_log(data: Path) -> None:
    questions = questions_in(data)
    batch = next(iter(QuestionBatches(questions, tiny_processor(), 3)))
    module = TaskAnswering(tiny_llava(), tiny_processor(), Answering(max_new_tokens=2), None)
    assert len(module.predict_step(batch, 0)) == 3
