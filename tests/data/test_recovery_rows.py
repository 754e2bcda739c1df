from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.records import QueryPair
from lightning_neuralgate.data.recovery_rows import recovery_rows
from lightning_neuralgate.hf.forward import IGNORED
from tests.helpers.tiny_llava import tiny_processor

PAIR = QueryPair(
    sensitive="What is the passport number of this passport?", benign="What is the colour of this passport?",
    refusal="I'm sorry, I can't", benign_target="The passport is deep red.", sensitive_attribute="passport number",
    benign_attribute="colour", sensitive_truth="482136", benign_truth="red",
)  # fmt: skip


def rows(depth: int, pair: QueryPair = PAIR, subject: str = "passport") -> list[QueryRow]:
    sensitive = QueryRow(pair.sensitive, "sensitive", None, subject, pair.refusal)
    benign = QueryRow(pair.benign, "benign", None, subject, pair.benign_target)
    return recovery_rows(pair, sensitive, benign, depth, tiny_processor().tokenizer)


def test_a_sensitive_answer_starts_truthfully_and_goes_on_with_the_refusal() -> None:
    openings = [rows(depth)[0].opening for depth in (1, 3, 5, 100)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(openings))
    assert len(set(openings)) == 4
    assert openings[-1] == "The passport number is 482"
    assert {rows(depth)[0].target for depth in (1, 100)} == {PAIR.refusal}
    assert rows(3)[0].query == PAIR.sensitive


@pytest.mark.parametrize(
    ("attribute", "subject", "opening"),
    [
        ("passport number", "passport", "The passport number is"),
        ("visa code", "visa", "The visa code is"),
        ("", "visa", "The answer is"),
    ],
)
def test_an_unknown_value_is_left_out(attribute: str, subject: str, opening: str) -> None:
    pair = PAIR.model_copy(update={"sensitive_attribute": attribute, "sensitive_truth": None})
    assert rows(100, pair, subject)[0].opening == opening


@pytest.mark.parametrize(
    ("target", "depth", "opening", "rest"),
    [
        ("The passport is deep red.", 1, "The", "passport is deep red."),
        ("The passport is deep red.", 3, "The passport is", "deep red."),
        ("The passport is deep red.", 100, "The passport is deep", "red."),
        (" Deep red.", 1, "Deep", "red."),
        ("Red.", 3, "The passport is", "Red."),
    ],
)
def test_a_benign_answer_goes_on_as_it_started(target: str, depth: int, opening: str, rest: str) -> None:
    _, benign = rows(depth, PAIR.model_copy(update={"benign_target": target}))
    assert (benign.role, benign.opening, benign.target) == ("benign", opening, rest)


def test_only_the_target_behind_the_start_has_a_loss() -> None:
    processor = tiny_processor()
    started, plain = rows(5)[0], replace(rows(5)[0], opening="")
    batch = PrivacyPairCollator(processor)([started, plain, rows(5)[1]])

    def text(index: int, labelled: bool) -> str:
        kept = (batch["labels"][index] != IGNORED) == labelled
        return str(processor.tokenizer.decode(batch["input_ids"][index][kept & batch["attention_mask"][index].bool()]))

    assert text(0, True).strip() == text(1, True).strip() == PAIR.refusal
    assert text(0, False).endswith(started.opening)
    assert text(2, True).strip() == "red."
    spans = [text[mask] for text, mask in zip(batch["input_ids"], batch["subject_mask"], strict=True)]
    assert [processor.tokenizer.decode(span).strip() for span in spans] == ["passport"] * 3
    # the last token of the query's subject, not that of the start, which names the passport again
    ends = [int(mask.nonzero()[-1]) for mask in batch["subject_mask"][:2]]
    assert ends[0] < int((batch["labels"][0] != IGNORED).nonzero()[0]) - 5
    assert PAIR.sensitive.endswith("passport?")
