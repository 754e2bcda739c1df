"""Generation with shared prefixes, compared with each prompt alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.hf.generation import generate_answers
from lightning_neuralgate.prefix_cache.generate import generate_with_shared_prefix
from lightning_neuralgate.prefix_cache.prefix import SharedPrefix
from tests.helpers.shifted_positions import shift_cached_positions
from tests.helpers.tiny_llava import tiny_llava, tiny_processor


@pytest.fixture(autouse=True)
def _share_short_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_neuralgate.prefix_cache.generate._MIN_PREFIX", 4)


def query_rows(splits: RecordSplits) -> list[QueryRow]:
    """Four, three and one query about three pictures, all of different lengths."""
    rows = [question_rows(record) for record in splits.test[:3]]
    rows = [*rows[0], *rows[1][:3], *rows[2][:1]]
    return [QueryRow(f"{'Well, ' * index}{row.query}", row.role, row.image) for index, row in enumerate(rows)]


def encoded_pictures(model: Any) -> list[int]:
    """Return a list to which each pass of the vision tower appends its number of pictures."""
    pictures: list[int] = []
    model.model.vision_tower.register_forward_hook(lambda module, args, output: pictures.append(len(output[0])))
    return pictures


def generate(model: Any, rows: list[QueryRow]) -> list[str]:
    collate = PrivacyPairCollator(tiny_processor())
    return generate_with_shared_prefix(model, collate.tokenizer, collate(rows), [row.image for row in rows], 6)


def plain(model: Any, rows: list[QueryRow]) -> list[str]:
    collate = PrivacyPairCollator(tiny_processor())
    return [generate_answers(model, collate.tokenizer, collate([row]), 6)[0] for row in rows]


def test_answers_are_those_of_each_prompt_alone(splits: RecordSplits) -> None:
    model, rows = tiny_llava(), query_rows(splits)
    expected = plain(model, rows)
    assert len(set(expected)) > 4
    pictures = encoded_pictures(model)
    for _ in range(2):
        pictures.clear()
        assert generate(model, rows) == expected
    assert pictures == [3], "each picture is encoded once"


def test_any_number_of_rows_in_any_order(splits: RecordSplits) -> None:
    model, rows = tiny_llava(), query_rows(splits)
    mixed = [rows[index] for index in (7, 0, 5, 2, 6, 1, 4, 3)]
    for size in (1, 3, 8):
        assert answer_rows(model, tiny_processor(), mixed, 6, size) == plain(model, mixed)


def test_sharing_can_be_turned_off(splits: RecordSplits) -> None:
    model, rows = tiny_llava(), query_rows(splits)
    pictures = encoded_pictures(model)
    answer_rows(model, tiny_processor(), rows, 2, 8, share_prefixes=False)
    assert pictures == [8]


@pytest.mark.parametrize("kind", ["autocast", "weights"])
def test_half_precision_is_no_false_alarm(splits: RecordSplits, kind: str) -> None:
    model, rows = tiny_llava(), query_rows(splits)
    if kind == "weights":
        model = model.bfloat16()
    pictures = encoded_pictures(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        for _ in range(2):
            pictures.clear()
            assert len(generate(model, rows)) == len(rows)
    assert pictures == [3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_unsupported_model_runs_full_prompts(splits: RecordSplits, dtype: torch.dtype) -> None:
    model, rows = tiny_llava().to(dtype), query_rows(splits)
    collate = PrivacyPairCollator(tiny_processor())
    expected = generate_answers(model, collate.tokenizer, collate(rows), 6)
    shift_cached_positions(model)
    with pytest.warns(UserWarning, match="not supported for LlavaForConditionalGeneration"):
        assert generate(model, rows) == expected
    assert generate(model, rows) == expected


def test_prefix_groups_and_limits(splits: RecordSplits) -> None:
    model, rows, collate = tiny_llava(), query_rows(splits), PrivacyPairCollator(tiny_processor())
    batch = collate(rows)
    shown = [row.image for row in rows]
    found = SharedPrefix(model, batch, shown)
    image = model.config.image_token_id
    assert found.leaders.tolist() == [0, 4, 7]
    assert found.group_index.tolist() == [0] * 4 + [1] * 3 + [2]
    ids = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    assert int(ids.eq(image).nonzero().max()) < found.length < len(ids)
    assert SharedPrefix(model, batch, range(len(rows))).length == 0, "no two rows share a group"
    assert SharedPrefix(model, batch, ["all"] * len(rows)).length == 0, "rows with different pictures"
    limit = found.starts + 3
    assert SharedPrefix(model, batch, shown, limit).length == 0, "the picture ends behind the limit"
    words = collate([QueryRow(f"Is it {n}?", "benign", None) for n in range(3)])
    assert SharedPrefix(model, words, ["x"] * 3, None).length > 3
    assert torch.equal(found.ends, torch.full((8,), batch["input_ids"].shape[1]))
