"""Partial passes above the located layer, from the subject on, compared with full ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_neuralgate.data.collator import PrivacyPairCollator
from lightning_neuralgate.data.datamodule import locate_rows
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.gate.spans import last_position
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import IGNORED, batch_nll
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.prefix_cache.attention import SharedPrefixAttention, SharedPrefixLayer
from lightning_neuralgate.prefix_cache.locate_pass import LocatePass
from lightning_neuralgate.prefix_cache.prefix import split_positions_problem
from tests.helpers.reference import relative_error
from tests.helpers.tiny_checkpoints import tiny_checkpoint
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.tiny_models import TINY_FAMILIES, TinySizes
from tests.helpers.training import datamodule

SHARED = 5


def record_batch(splits: RecordSplits, side: str = "left") -> dict[str, Any]:
    return datamodule(splits, padding_side=side).collate_training(locate_rows(splits.edit[0]))


def words_batch() -> dict[str, Any]:
    """Five rows without pictures, with five tokens in common, two of them padded on the left."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (5, 20), generator=generator)
    attention = torch.ones_like(ids)
    starts = (0, 3, 1, 0, 0)
    for row, start in enumerate(starts):
        attention[row, :start] = 0
        ids[row, start : start + SHARED] = torch.arange(10, 10 + SHARED)
        ids[row, start + SHARED] = 20 + row
    labels = ids.clone()
    labels[:, :-3] = IGNORED
    subject = torch.zeros_like(ids, dtype=torch.bool)
    subject[torch.arange(5), torch.tensor([12, 13, 11, 12, 10])] = True
    return {
        "input_ids": ids * attention,
        "attention_mask": attention,
        "labels": labels,
        "subject_mask": subject,
        "record_id": ["r"] * 5,
    }


def compared(model: Any, batch: dict[str, Any], layers: list[int]) -> LocatePass:
    """Return the partial pass, after comparing values and gradients with full passes, twice."""
    positions = last_position(batch["subject_mask"])
    locator = PrivacyLocatorModule(model, layers)
    partial_pass = LocatePass(model, batch, positions, layers)
    vectors = list(locator.v.values())
    for value in (2.0, -0.7):
        for vector in vectors:
            torch.nn.init.normal_(vector, value, 0.5)
        with locator.scaled(positions):
            expected = batch_nll(model, batch)
        with locator.scaled(partial_pass.positions):
            found = partial_pass.nll()
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert expected.std() > 1e-3, "equal rows would prove nothing"
        weights = torch.linspace(0.5, 1.5, len(expected))
        for one, other in zip(
            torch.autograd.grad(weights @ found, vectors), torch.autograd.grad(weights @ expected, vectors), strict=True
        ):
            assert float(other.norm()) > 0
            assert relative_error(one, other) < 1e-4
    return partial_pass


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_full_passes(splits: RecordSplits, side: str, attention: str) -> None:
    model = tiny_llava(layers=4)
    model.set_attn_implementation(attention)
    batch = record_batch(splits, side)
    partial_pass = compared(model, batch, [1, 2])
    tokens = int(batch["attention_mask"].sum(1).max())
    assert partial_pass.positions.shape[1] < tokens / 2, "tokens before the subject are not run again"
    assert not any("forward" in layer.__dict__ for layer in find_decoder(model).layers)


def test_rows_share_their_prefix(splits: RecordSplits) -> None:
    model = tiny_llava(layers=3)
    batch = record_batch(splits)
    seen: list[tuple[int, ...]] = []
    handle = (
        find_decoder(model).layer(0).register_forward_hook(lambda m, args, output: seen.append(tuple(output.shape)))
    )
    towers: list[int] = []
    tower = model.model.vision_tower.register_forward_hook(lambda m, args, output: towers.append(1))
    partial_pass = LocatePass(model, batch, last_position(batch["subject_mask"]), [0])
    handle.remove()
    tower.remove()
    (one, shared, _), (rows, rest, _) = seen
    assert (one, rows) == (1, 7)
    assert shared >= 5, "the picture and the tokens before it"
    assert shared + rest < batch["input_ids"].shape[1] + 8
    assert len(towers) == 1
    assert partial_pass.positions.shape[0] == 7


def test_several_records(splits: RecordSplits) -> None:
    rows = [row for record in splits.edit[1:4] for row in locate_rows(record)]
    partial_pass = compared(tiny_llava(layers=4), datamodule(splits).collate_training(rows), [1, 2])
    assert partial_pass.prefix_length >= 5
    assert partial_pass.positions.shape[0] == 21


def test_rows_with_different_pictures_share_nothing(splits: RecordSplits) -> None:
    rows = locate_rows(splits.edit[0])[:3] + locate_rows(splits.edit[2])[:3]
    batch = datamodule(splits).collate_training(rows)
    compared(tiny_llava(layers=3), batch, [1])


def large_weights_model(family: str) -> Any:
    """Return a random model of four decoder layers, with larger weights than by default, so that losses differ."""
    torch.manual_seed(0)
    model = TINY_FAMILIES[family].build(TinySizes(text_layers=4)).eval()
    for parameter in find_decoder(model).layers.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    "family",
    ["llava", "llava_onevision", "minigpt4", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "gemma3"],
)
def test_families(family: str) -> None:
    compared(large_weights_model(family), words_batch(), [1])


@pytest.mark.parametrize("window", [30, 12])
def test_a_window_over_the_prefix(window: int) -> None:
    model = large_weights_model("gemma3")
    model.config.text_config.sliding_window = window
    batch = words_batch()
    if window > batch["input_ids"].shape[1]:
        compared(model, batch, [1])
        return
    with pytest.raises(ValueError, match="reaches back"):
        LocatePass(model, batch, last_position(batch["subject_mask"]), [1])
    locator = PrivacyLocatorModule(model, [1], max_steps=1)
    locator._losses.fast_path.restore(True)
    batch["role"] = ["sensitive"] * 4 + ["benign"]
    with pytest.warns(UserWarning, match="not supported for record r "):
        locator._learn(batch)
    assert locator._losses.fast_path.verified


def test_a_model_that_insists_on_a_picture(splits: RecordSplits) -> None:
    model, processor = tiny_checkpoint("instructblip", layers=4)
    towers: list[int] = []
    model.vision_model.register_forward_hook(lambda module, args, output: towers.append(1))
    batch = PrivacyPairCollator(processor)(locate_rows(splits.edit[0]))
    partial_pass = compared(model, batch, [1, 2])
    assert partial_pass.prefix_length == 0, "its Q-Former reads the question"
    assert len(towers) == 3, "once for the partial pass, and once in each of two full ones"


def test_positions_that_cannot_be_counted_in_parts(splits: RecordSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_positions_problem(tiny_llava(), 500, pictures=True) is None
    qwen = TINY_FAMILIES["qwen2_vl"].build()
    assert split_positions_problem(qwen, 20, pictures=True) is None
    monkeypatch.delattr(type(qwen.model), "get_rope_index")
    assert split_positions_problem(qwen, 20, pictures=False) is None
    assert "places in a picture" in str(split_positions_problem(qwen, 20, pictures=True))
    model = tiny_llava(layers=3)
    batch = record_batch(splits)
    length = batch["input_ids"].shape[1]
    model.config.text_config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    for known, problem in ((length, None), (length - 1, f"beyond {length - 1} tokens")):
        model.config.text_config.max_position_embeddings = known
        found = split_positions_problem(model, length, pictures=True)
        assert found is None if problem is None else problem in str(found)
    with pytest.raises(ValueError, match="how long a text"):
        LocatePass(model, batch, last_position(batch["subject_mask"]), [1])


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("shared", [0, 6])
@pytest.mark.parametrize("mask", ["bool", "float", "none"])
def test_shared_prefix_attention_equals_full_attention(grouped: bool, shared: int, mask: str) -> None:
    torch.manual_seed(1)
    rows, runs, heads, groups, own, new, size = 6, 2, 4, 2 if grouped else 4, 5, 3, 8
    query = torch.randn(rows, heads, new, size, requires_grad=True)
    fresh = [torch.randn(rows, groups, new, size, requires_grad=True) for _ in range(2)]
    common = [torch.randn(runs, groups, shared, size) for _ in range(2)]
    owned = [torch.randn(rows, groups, own, size) for _ in range(2)]
    seen = torch.rand(rows, 1, new, shared + own + new) > 0.3
    seen[..., -new:] |= torch.eye(new, dtype=torch.bool)
    seen[..., :shared] = True
    masks: dict[str, Tensor | None] = {
        "bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, float("-inf")), "none": None,
    }  # fmt: skip

    def repeated(part: Tensor) -> Tensor:
        return part.repeat_interleave(heads // groups, 1)

    full = [
        torch.cat([c.repeat_interleave(rows // runs, 0), o, f], 2) for c, o, f in zip(common, owned, fresh, strict=True)
    ]
    expected = F.scaled_dot_product_attention(query, *map(repeated, full), attn_mask=masks[mask], scale=0.2)
    layer = SharedPrefixLayer((common[0], common[1]), (owned[0], owned[1]))
    assert layer.get_seq_length() == shared + own
    with SharedPrefixAttention([layer]):
        keys, values = layer.update(*fresh)
        found = F.scaled_dot_product_attention(
            query, repeated(keys), repeated(values), attn_mask=masks[mask], scale=0.2
        )
        plain = F.scaled_dot_product_attention(query, *map(repeated, full), attn_mask=masks[mask], scale=0.2)
    assert torch.equal(plain, expected), "attention without a cache update before it is left alone"
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), [query, *fresh]),
        torch.autograd.grad((expected * weights).sum(), [query, *fresh]),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_shared_prefix_attention_refuses_causal_masks() -> None:
    layer = SharedPrefixLayer((torch.zeros(1, 1, 0, 4),) * 2, (torch.zeros(1, 1, 2, 4),) * 2)
    tokens = torch.zeros(1, 1, 1, 4)
    with SharedPrefixAttention([layer]):
        layer.update(tokens, tokens)
        with pytest.raises(ValueError, match="cannot be computed in parts"):
            F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True)
