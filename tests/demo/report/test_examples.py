from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

from lightning_neuralgate.demo.report.examples import Example, select_examples
from tests.demo.report.data import answers


def test_examples_alternate_between_subjects_and_kinds(tmp_path: Path) -> None:
    chosen = [example.question for example in select_examples(answers(tmp_path), count=9)]
    # the rounds: passport (test), drone (unseen), receipt (test), and so on
    assert [(row.record_id, row.sensitive) for row in chosen] == [
        ("passport-0", True),
        ("passport-1", False),
        ("passport-2", True),
        ("receipt-0", True),
        ("receipt-1", False),
        ("receipt-2", True),
        ("drone-0", False),
        ("drone-1", True),
        ("drone-2", False),
    ]
    assert all(row.prompt.startswith("a)") for row in chosen)


def test_twenty_pictures_of_different_records(tmp_path: Path) -> None:
    chosen = [example.question for example in select_examples(answers(tmp_path))]
    assert len({row.record_id for row in chosen}) == len(chosen) == 20
    assert Counter(row.subject for row in chosen) == {"passport": 7, "drone": 7, "receipt": 6}
    assert Counter(row.sensitive for row in chosen) == {True: 10, False: 10}


def test_record_ids_sort_numerically(tmp_path: Path) -> None:
    drones = [
        e.question.record_id for e in select_examples(answers(tmp_path), count=99) if e.question.subject == "drone"
    ]
    assert drones == [f"drone-{number}" for number in range(12)]


def test_selection_does_not_depend_on_the_answers(tmp_path: Path) -> None:
    rows = answers(tmp_path)
    other = [replace(row, answer=str(index), refused=index % 3 == 0) for index, row in enumerate(rows)]
    random.Random(0).shuffle(other)

    def questions(chosen: list[Example]) -> list[tuple[str, str]]:
        return [(example.question.record_id, example.question.prompt) for example in chosen]

    assert questions(select_examples(rows)) == questions(select_examples(other))


def test_fewer_records_than_examples(tmp_path: Path) -> None:
    rows = answers(tmp_path, records=2)
    only_sensitive = [row for row in rows if row.sensitive]
    assert len(select_examples(rows)) == 6
    assert len(select_examples(only_sensitive)) == 6
    assert select_examples([]) == []


def test_each_example_has_every_models_answer(tmp_path: Path) -> None:
    rows = [row for row in answers(tmp_path) if (row.model, row.record_id) != ("gated", "passport-0")]
    first = select_examples(rows)[0]
    assert list(first.answers) == ["unedited", "gated", "ungated"]
    assert first.answers["gated"] is None
    assert {row.prompt for row in first.answers.values() if row} == {first.question.prompt}
