from __future__ import annotations

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.rates import summarize
from lightning_neuralgate.hf.generation import PAPER_SAMPLING, seeded_sampling
from lightning_neuralgate.runtime.answer_cache import AnswerCache
from lightning_neuralgate.runtime.run_folder import UNFINISHED
from lightning_neuralgate.tasks.answer_store import read_answered
from lightning_neuralgate.tasks.benchmarks.privacy_pair import privacy_pair_items
from lightning_neuralgate.tasks.evaluate import evaluate
from lightning_neuralgate.tasks.questions import QuestionBatches, TaskQuestions
from lightning_neuralgate.tasks.runner import Answering, TaskAnswering, TaskRun, answer_tasks
from lightning_neuralgate.tasks.scoring import partial_tasks, tally_answers, tally_run, task_scores
from tests.helpers.launch import launch
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.tasks.runs import Calls, answer, questions_in, trainer_of, write_data

SAMPLED = Answering(max_new_tokens=6, batch_size=3, sampling=PAPER_SAMPLING)


def test_every_question_is_answered_once_and_in_order(data: Path, complete: Path) -> None:
    answers = list(read_answered(complete))
    keys = [answered.key for answered in answers]
    assert keys == sorted(keys)
    assert Counter(answered.task for answered in answers) == {"pope": 5, "mme": 8, "scienceqa": 4, "mllmguard": 4}
    items = {(item.task, item.item_id): item for item in questions_in(data)}
    rows = [QueryRow(item.prompt, "benign", item.picture) for item in items.values()]
    texts = dict(zip(items, answer_rows(tiny_llava(), tiny_processor(), rows, 6, batch_size=1), strict=True))
    for answered in answers:
        assert answered == items[answered.key].answered(texts[answered.key])
    assert len({answered.answer for answered in answers}) > 3
    assert all(byte < 128 for byte in complete.read_bytes())


@pytest.mark.parametrize("answering", [Answering(max_new_tokens=6, batch_size=3), SAMPLED])
def test_cached_answers_are_reused(data: Path, tmp_path: Path, answering: Answering) -> None:
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


def test_the_cache_depends_on_processor_and_end_tokens(data: Path, tmp_path: Path) -> None:
    def answered_rows(name: str, model: Any, processor: Any) -> int:
        calls = Calls(model)
        answer_tasks(
            model, processor, questions_in(data), tmp_path / name, trainer_of(), Answering(max_new_tokens=2, batch_size=8)
        )  # fmt: skip
        return calls.rows

    assert answered_rows("first", tiny_llava(), tiny_processor()) == 21
    assert answered_rows("again", tiny_llava(), tiny_processor()) == 0
    extended = tiny_processor()
    extended.tokenizer.add_tokens(["passport"])
    assert answered_rows("another tokenizer", tiny_llava(), extended) == 21
    ends_earlier = tiny_llava()
    ends_earlier.generation_config.eos_token_id = [2, 5]
    assert answered_rows("another end token", ends_earlier, tiny_processor()) == 21
    beams = tiny_llava()
    beams.generation_config.num_beams = 3
    assert answered_rows("ignored settings", beams, tiny_processor()) == 0
    generation = json.loads((tmp_path / "another end token" / "run.json").read_text())["settings"]["generation"]
    assert {name: generation[name] for name in ("do_sample", "num_beams", "eos_token_id")} == {
        "do_sample": False, "num_beams": 1, "eos_token_id": [2, 5]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 1, got -1"),
        ({"sampling": {"temperature": -0.5}}, "temperature must be above 0, got -0.5"),
        ({"sampling": {"temperature": 0}}, "leave sampling out for greedy answers"),
        ({"sampling": {"top_p": 1.5}}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"sampling": {"top_p": 0.0}}, "top_p must be above 0 and at most 1, got 0.0"),
    ],
)
def test_invalid_generation_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Answering(**options)


def test_a_corrupt_cache_is_made_anew(data: Path, complete: Path, tmp_path: Path) -> None:
    file = AnswerCache({}).file
    file.write_text("not a database, but long enough to be read as the header of one" * 20)
    with pytest.warns(UserWarning, match=r"answers\.sqlite is damaged .* it is now answers\.damaged"):
        assert answer(data, tmp_path).file.read_bytes() == complete.read_bytes()


def test_sampled_answers_depend_on_neither_batch_size_nor_global_seed(data: Path, tmp_path: Path) -> None:
    answers = {}
    for size in (1, 3, 8):
        torch.manual_seed(size)
        answering = Answering(6, PAPER_SAMPLING, batch_size=size, share_prefixes=size > 1)
        file = answer(data, tmp_path / str(size), answering=answering, use_cache=False).file
        answers[size] = {answered.key: answered.answer for answered in read_answered(file)}
    assert answers[1] == answers[3] == answers[8]
    another_seed = Answering(6, PAPER_SAMPLING, seed=1, batch_size=8)
    file = answer(data, tmp_path / "another seed", answering=another_seed, use_cache=False).file
    changed = sum(answered.answer != answers[8][answered.key] for answered in read_answered(file))
    assert changed > 15, "another seed gives different answers"


def test_sampling_draws_from_the_distribution() -> None:
    ids = torch.tensor([[1, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    counts = Counter(
        int(seeded_sampling({"top_p": 0.9}, batch, [seed])["logits_processor"](ids, scores).argmax())
        for seed in range(4000)
    )
    # top_p=0.9 keeps the first three tokens (0.95 of the mass)
    assert counts[3] == 0
    for token, share in enumerate((0.5, 0.3, 0.15)):
        assert counts[token] / 4000 == pytest.approx(share / 0.95, abs=0.03)


def test_the_repetition_penalty_ignores_padding() -> None:
    ids = torch.tensor([[0, 0, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1]])}
    process = seeded_sampling({"repetition_penalty": 2.0}, batch, [7])["logits_processor"]
    plain = seeded_sampling({}, batch, [7])["logits_processor"]
    scores = torch.tensor([[4.0, 4.0, 4.0]])
    assert (process(ids, scores) - plain(ids, scores)).tolist() == [[0.0, 0.0, -2.0]]
    continued = torch.tensor([[0, 0, 2, 1]])
    assert (process(continued, scores) - plain(continued, scores)).tolist() == [[0.0, -2.0, -2.0]]
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
    expected = [
        answered.key
        for answered in read_answered(answer(data, tmp_path / "complete").file)
        if "OCR/1" not in answered.item_id
    ]
    assert [answered.key for answered in read_answered(done.file)] == expected


def test_questions_that_the_processor_rejects(tmp_path: Path) -> None:
    image_processor_class: Any = tiny_processor().image_processor.__class__

    class RejectsWideImages(image_processor_class):
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
    processor.image_processor = RejectsWideImages(**{
        name: getattr(processor.image_processor, name) for name in ("size", "crop_size")
    })  # fmt: skip

    def run_with(out: Path, **options: Any) -> TaskRun:
        questions, answering = questions_in(folder, **options), Answering(max_new_tokens=2, batch_size=3)
        return answer_tasks(tiny_llava(), processor, questions, out, trainer_of(), answering, use_cache=False)

    with pytest.raises(DataFormatError, match=r"line 6: not JSON: half a surrogate pair"):
        run_with(tmp_path / "stop")
    run = run_with(tmp_path / "skip", on_broken="skip")
    assert list(run.unreadable) == ["mllmguard bias/prompt/00000"]
    assert "absolute aspect ratio" in run.unreadable["mllmguard bias/prompt/00000"]
    assert sum(run.answered.values()) == 20
    assert run.missing == 0


def test_an_invalid_run_file_is_named(data: Path, tmp_path: Path) -> None:
    answer(data, tmp_path)
    lines = (tmp_path / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text("".join(lines[:-1]))
    assert partial_tasks(tally_run(tmp_path)[1]) == ["scienceqa"], "deleted answers are missing"
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(DataFormatError, match=r"run\.json: expected a JSON object, found list; delete it"):
        tally_run(tmp_path)
    (tmp_path / "run.json").unlink()
    assert tally_run(tmp_path)[1] == {}, "without run.json there are no counts"


def test_workers_change_nothing(data: Path, complete: Path, tmp_path: Path) -> None:
    assert answer(data, tmp_path, use_cache=False, num_workers=2).file.read_bytes() == complete.read_bytes()


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_answer_as_one(data: Path, complete: Path, tmp_path: Path, strategy: str) -> None:
    launch("-m", "tests.tasks.runs", strategy, str(data), str(tmp_path / "two"), world=2)
    assert (tmp_path / "two" / "answers.jsonl").read_bytes() == complete.read_bytes()
    logs = [tmp_path / "two" / UNFINISHED / f"part-{rank}.jsonl" for rank in range(2)]
    assert [len(log.read_bytes().splitlines()) for log in logs] == [12, 9]


@pytest.mark.slow
def test_two_processes_sample_as_one(data: Path, tmp_path: Path) -> None:
    launch("-m", "tests.tasks.runs", "ddp", str(data), str(tmp_path / "two"), "--sample", world=2)
    single = answer(data, tmp_path / "one", answering=SAMPLED, use_cache=False).file
    assert (tmp_path / "two" / "answers.jsonl").read_bytes() == single.read_bytes()


def test_privacy_pair_has_the_rates_of_evaluate(splits: RecordSplits, tmp_path: Path) -> None:
    tested = {"test": splits.test, "unseen_subjects": splits.unseen_subjects}
    questions = TaskQuestions({"privacy_pair": partial(privacy_pair_items, tested, tmp_path)})
    run = answer(tmp_path, tmp_path / "out", questions=questions)
    figures = task_scores(tally_answers(read_answered(run.file)), "", resamples=10)["tasks"]["privacy_pair"]["figures"]
    answers = evaluate(tiny_llava(), tiny_processor(), tested, tmp_path, "tiny", max_new_tokens=6, share_prefixes=False)
    expected = {
        f"{split}/{name}": value
        for split, rates in summarize(answers).items()
        for name, value in rates.items()
        if name != "n"
    }
    assert figures == pytest.approx(expected)


def test_the_module_answers_without_a_log(data: Path) -> None:
    questions = questions_in(data)
    batch = next(iter(QuestionBatches(questions, tiny_processor(), 3)))
    module = TaskAnswering(tiny_llava(), tiny_processor(), Answering(max_new_tokens=2), None)
    assert len(module.predict_step(batch, 0)) == 3
