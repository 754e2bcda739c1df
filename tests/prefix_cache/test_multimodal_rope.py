"""Shared prefixes with multimodal RoPE: text behind a picture continues from the picture's largest position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.datamodule import edit_rows, locate_rows
from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.hf.generation import generate_answers
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.prefix_cache import continuations, generate
from lightning_neuralgate.prefix_cache.continuations import continuation_nll
from lightning_neuralgate.prefix_cache.edit_pass import EditPass
from lightning_neuralgate.prefix_cache.generate import generate_with_shared_prefix
from lightning_neuralgate.prefix_cache.layout import BatchLayout
from lightning_neuralgate.prefix_cache.prefix import SharedPrefix, picture_layers
from tests.helpers.reference import relative_error
from tests.helpers.tiny_checkpoints import tiny_checkpoint
from tests.prefix_cache.test_continuations import alone, rows
from tests.prefix_cache.test_locate_pass import compared

LAYER = 2


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def checkpoint_of(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    model, processor = tiny_checkpoint(request.param, layers=4)
    return request.param, model.requires_grad_(False), processor


def test_positions_of_a_picture(checkpoint_of: tuple[str, Any, Any], splits: RecordSplits) -> None:
    _, model, processor = checkpoint_of
    Image.open(splits.edit[1].image).transpose(Image.Transpose.ROTATE_90).save(splits.edit[1].image)
    records = [row for record in splits.edit[:2] for row in edit_rows(record, record.pairs[0])]
    batch = PrivacyPairCollator(processor)([*records, QueryRow("Why?", "retention", None, target="I see.")])
    assert batch["image_grid_thw"][::2].tolist() == [[1, 4, 6], [1, 6, 4]], "wide, and upright"
    prefix = SharedPrefix(model, batch, [0, 0, 1, 1, 2])
    tokens = prefix.attention_mask.sum(1)
    last = prefix.positions[:, torch.arange(5), prefix.ends - 1]
    assert last.tolist() == [(tokens - 1 - torch.tensor([3, 3, 3, 3, 0])).tolist()] * 3, (
        "2 by 3 tokens take 3 positions"
    )
    pictured = batch["input_ids"][2] == model.config.image_token_id
    time, height, width = prefix.positions[:, 2, pictured] - int(prefix.positions[0, 2, pictured][0])
    assert time.tolist() == [0] * 6
    assert height.tolist() == [0, 0, 1, 1, 2, 2]
    assert width.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_partial_passes_equal_full_ones(checkpoint_of: tuple[str, Any, Any], splits: RecordSplits, side: Any) -> None:
    _, model, processor = checkpoint_of
    batch = PrivacyPairCollator(processor, side)([row for record in splits.edit[:2] for row in locate_rows(record)])
    partial_pass = compared(model, batch, [0, LAYER])
    pictures = (batch["input_ids"][0] == model.config.image_token_id).sum()
    assert partial_pass.prefix_length > int(pictures) == 6


def test_fast_and_plain_gates_are_equal(checkpoint_of: tuple[str, Any, Any], splits: RecordSplits) -> None:
    _, model, processor = checkpoint_of
    batch = PrivacyPairCollator(processor)(locate_rows(splits.edit[0]))
    signs = []
    for fast in (True, False):
        locator = PrivacyLocatorModule(model, [1], max_steps=25, stop_loss=-1.0, reuse_prefix=fast)
        vectors, _, _ = locator._learn(batch)
        assert locator._losses.fast_path.verified is fast
        signs.append(vectors[splits.edit[0].record_id][1] < 0)
    assert torch.equal(*signs)
    assert 0 < int(signs[0].sum()) < len(signs[0])


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_shared_rows_equal_full_rows(checkpoint_of: tuple[str, Any, Any], splits: RecordSplits, frozen: int) -> None:
    family, model, processor = checkpoint_of
    weight: Any = find_decoder(model).output_projection(LAYER).weight
    rows_of_records = [row for record in splits.edit[:3] for pair in record.pairs for row in edit_rows(record, pair)]
    batch = PrivacyPairCollator(processor)(rows_of_records)
    layout = BatchLayout(model, batch)
    assert layout.prefix.length > 6
    passes = EditPass(model, layout, frozen)
    assert picture_layers(model) == (family == "qwen3_vl")
    weight.requires_grad_(True)
    try:
        for _ in range(2):
            found, expected = passes.nll(), batch_nll(model, batch)
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
            assert expected.std() > 1e-3, "equal rows would prove nothing"
            (one,), (other,) = (torch.autograd.grad(losses.sum(), [weight]) for losses in (found, expected))
            assert relative_error(one, other) < 1e-4
    finally:
        weight.requires_grad_(False)


def test_answers_are_those_of_each_prompt_alone(
    checkpoint_of: tuple[str, Any, Any], splits: RecordSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, processor = checkpoint_of
    monkeypatch.setattr(generate, "_MIN_PREFIX", 4)
    collate = PrivacyPairCollator(processor)
    questions = [row for record in splits.test[:2] for row in question_rows(record)]
    questions = [QueryRow(f"{'Well, ' * n}{row.query}", row.role, row.image) for n, row in enumerate(questions)]
    expected = [generate_answers(model, collate.tokenizer, collate([row]), 6)[0] for row in questions]
    assert len(set(expected)) > 2
    images = [row.image for row in questions]
    for _ in range(2):
        assert generate_with_shared_prefix(model, collate.tokenizer, collate(questions), images, 6) == expected
    assert generate._FAST_PATHS[model].verified


def test_continuations_are_those_of_each_row_alone(checkpoint_of: tuple[str, Any, Any], splits: RecordSplits) -> None:
    _, model, processor = checkpoint_of
    chosen = rows(splits)
    found = continuation_nll(model, PrivacyPairCollator(processor)(chosen))
    assert torch.allclose(found, alone(model, processor, chosen), rtol=1e-4)
    assert continuations._FAST_PATHS[model].verified
