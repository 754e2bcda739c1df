from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.tasks.questions import QuestionBatches
from tests.helpers.tiny_llava import tiny_processor
from tests.tasks.runs import questions_in, write_data


def test_a_picture_deleted_after_the_survey_is_skipped(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    questions = questions_in(folder, on_broken="skip")
    item = next(item for item in questions if item.task == "mllmguard")
    questions.sources = {"mllmguard": lambda broken: iter([item])}
    (folder / "mllmguard" / "bias" / "imgs" / "0.png").unlink()
    (batch,) = QuestionBatches(questions, tiny_processor(), 3)
    assert "0.png cannot be read: [Errno 2] No such file" in batch["broken"][0].reason
    questions.on_broken = "stop"
    with pytest.raises(
        DataFormatError, match=r"prompt\.csv, line 2: record bias/prompt/00000: picture .*0\.png cannot be read"
    ):
        next(iter(QuestionBatches(questions, tiny_processor(), 3)))


def test_a_limit_samples_complete_groups(data: Path) -> None:
    questions = questions_in(data, limit=5)
    assert questions.survey().counts == {"pope": 5, "mme": 4, "scienceqa": 4, "mllmguard": 4}
    mme = [item for item in questions if item.task == "mme"]
    assert Counter(item.group for item in mme).most_common() == [(mme[0].group, 2), (mme[2].group, 2)]
    smallest = questions_in(data, limit=1)
    counts = smallest.survey().counts
    assert counts == {"pope": 1, "mme": 2, "scienceqa": 1, "mllmguard": 1}, "both questions of an image are kept"
    assert {item.item_id for item in smallest} <= {item.item_id for item in questions}


def test_a_limit_can_apply_to_each_value_of_a_field(data: Path) -> None:
    questions = questions_in(data, limit=2, limit_per="subtask")
    survey = questions.survey()
    assert (survey.counts["pope"], survey.available["pope"]) == (2, 5), "items without the field are one part"
    subtasks = Counter(item.fields["subtask"] for item in questions if item.task == "mme")
    assert len(subtasks) > 1
    assert set(subtasks.values()) == {2}


def test_batches_are_the_same_for_any_number_of_processes(data: Path) -> None:
    questions, processor = questions_in(data), tiny_processor()
    questions.survey()

    def batches(world: int, done: frozenset[tuple[str, str]] = frozenset()) -> list[list[tuple[str, ...]]]:
        shares = [QuestionBatches(questions, processor, 4, done, rank, world) for rank in range(world)]
        by_rank = [list(share.loader()) for share in shares]
        assert len({len(share) for share in by_rank}) == 1, "every process has as many batches"
        return [
            sorted(tuple(item.item_id for item in batch["items"]) for batch in share if batch["counted"])
            for share in by_rank
        ]

    (single,) = batches(1)
    assert len(single) == 6
    for world in (2, 4, 5, 7):
        assert sorted(batch for share in batches(world) for batch in share) == single
    first = [*questions][:4]
    done = frozenset((item.task, item.item_id) for item in first)
    assert sorted(batch for share in batches(2, done) for batch in share) == sorted(
        batch for batch in single if batch != tuple(item.item_id for item in first)
    )
