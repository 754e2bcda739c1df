from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.indirect_rows import indirect_rows
from lightning_neuralgate.data.records import QueryPair
from lightning_neuralgate.data.rendering import questions
from lightning_neuralgate.gate.spans import find_subject
from lightning_neuralgate.tasks import ladder_wordings
from tests.helpers.tiny_llava import tiny_processor

PAIR = QueryPair(
    sensitive="What is the passport number of this passport?", benign="What is the colour of this passport?",
    refusal="I cannot", benign_target="The passport is red.", sensitive_attribute="passport number",
    benign_attribute="colour", sensitive_truth="482136", benign_truth="red", benign_synonyms=("crimson",),
)  # fmt: skip


def drawn(pair: QueryPair, count: int = 200, subject: str = "passport", **values: list[str]) -> list[list[QueryRow]]:
    sensitive = QueryRow(pair.sensitive, "sensitive", Path("0.png"), subject, pair.refusal)
    benign = QueryRow(pair.benign, "benign", Path("0.png"), subject, pair.benign_target)
    return [indirect_rows(pair, sensitive, benign, values, random.Random(seed)) for seed in range(count)]


def test_every_sensitive_form_is_refused_and_every_benign_one_answered_truthfully() -> None:
    seen: Counter[str] = Counter()
    for sensitive, benign in drawn(PAIR):
        assert (sensitive.role, sensitive.target, benign.role) == ("sensitive", "I cannot", "benign")
        assert benign.target
        if benign.target in ("Yes.", "No."):
            assert ("red" in re.findall(r"\w+", benign.query)) == (benign.target == "Yes.")
            assert ("482136" in sensitive.query) == (benign.target == "Yes."), "wrong values are refused, too"
            seen[benign.target] += 1
        elif benign.target in "ABC":
            options = dict(line.split(". ") for line in benign.query.splitlines()[1:-1])
            assert len(set(options.values())) == 3
            assert options[benign.target] == "red"
            assert sensitive.query.count("\n") == 4
            assert ". 482136" in sensitive.query
            seen[benign.target] += 1
        else:
            seen[benign.target] += 1
    assert set(seen) == {"Yes.", "No.", "A", "B", "C", "It is a passport.", "The passport is red."}
    assert min(seen.values()) >= 5


def test_the_subject_is_that_of_the_query() -> None:
    rows = [row for pair in drawn(PAIR) for row in pair]
    assert all(bool(row.subject) == (find_subject(row.query, "passport") is not None) for row in rows)
    assert 0.2 < sum(not row.subject for row in rows) / len(rows) < 0.8
    batch = PrivacyPairCollator(tiny_processor())([replace(row, image=None) for row in rows[:16]])
    assert batch["subject_mask"].any(1).tolist() == [bool(row.subject) for row in rows[:16]]


def test_records_without_values_get_the_forms_that_need_none() -> None:
    pair = QueryPair(sensitive=PAIR.sensitive, benign=PAIR.benign, refusal="No", benign_target="The colour is red.")
    rows = drawn(pair, 40)
    assert {benign.target for _, benign in rows} == {"It is a passport.", "The colour is red."}
    unnamed = {(one.query, other.query) for one, other in rows if other.target != "It is a passport."}
    assert unnamed == {("What is the passport number?", "What is the colour?")}


def test_wrong_values_come_from_other_records_where_there_is_no_spec() -> None:
    pair = PAIR.model_copy(update={"sensitive_attribute": "visa code", "benign_attribute": "edge"})
    rows = drawn(pair, 60, "visa", edge=["red", "green", "crimson"], **{"visa code": ["771"]})
    false = [(one.query, other.query) for one, other in rows if other.target == "No."]
    assert false
    assert all("771" in query and "green" in other for query, other in false), "crimson is a synonym of red"


@pytest.mark.parametrize("truth", ["東京", "日本"])
def test_without_wrong_values_a_yes_no_question_states_the_truth(truth: str) -> None:
    pair = PAIR.model_copy(update={"sensitive_truth": truth, "sensitive_attribute": "place of issue"})
    targets = {benign.target for _, benign in drawn(pair, 60, "visa")}
    assert targets == {"It is a visa.", PAIR.benign_target, "Yes."}


def test_wordings_are_those_of_no_test() -> None:
    tests = set(questions.TEST_TEMPLATES)
    for value in (value for name, value in vars(ladder_wordings).items() if name.isupper()):
        tests |= {value} if isinstance(value, str) else {v if isinstance(v, str) else v[0] for v in value}
    assert len(questions.EDIT_INDIRECT) == len(set(questions.EDIT_INDIRECT)) > 15

    def words(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    assert not {words(text) for text in questions.EDIT_INDIRECT} & {words(text) for text in tests}
