"""Predicted costs: shapes of a tiny model, and operations and memory that follow from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.models.costs import (
    Workload,
    image_tokens,
    matmul_rate,
    model_shapes,
    read_config,
)
from tests.helpers.tiny_llava import tiny_llava


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llava()


def test_shapes_are_those_of_the_model(model: Any) -> None:
    shapes = model_shapes(model.config)
    assert (shapes.hidden, shapes.query, shapes.key_value, shapes.intermediate) == (32, 32, 16, 48)
    assert (shapes.mlp_tensors, shapes.depth, shapes.vocabulary) == (3, 3, model.config.text_config.vocab_size)
    assert shapes.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert set(shapes.layer_weights) == {2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48}
    assert (shapes.tower_tokens, shapes.tower_width, shapes.tower_layers) == (4, 16, 2)
    assert image_tokens(model.config) == 4


def test_operations_of_a_decoder_pass_are_counted_alike(model: Any) -> None:
    shapes, decoder = model_shapes(model.config), model.model.language_model
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(inputs_embeds=torch.randn(1, 50, 32), use_cache=False)
    counted = sum(count for name, count in counter.get_flop_counts()["Global"].items() if "attention" not in str(name))
    assert counted == 2 * 50 * sum(shapes.layer_weights)


def test_kept_memory_is_what_autograd_saves() -> None:
    model = tiny_llava().requires_grad_(False)
    shapes, rows, tokens = model_shapes(model.config), 3, 40
    find_decoder(model).output_projection(0).requires_grad_(True)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, :5] = 0
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = model.model.language_model(
            inputs_embeds=torch.randn(rows, tokens, 32), attention_mask=mask, use_cache=False
        )
    assert output.last_hidden_state.requires_grad
    # two layers, the final norm, and the input of the edited projection
    expected = rows * tokens * (2 * shapes._kept_per_token(4, tokens) + 4 * 32 + 4 * 48)
    assert sum(saved.values()) == pytest.approx(expected, rel=0.03)


def test_costs_grow_with_what_they_depend_on(model: Any) -> None:
    shapes = model_shapes(model.config)
    few, many = Workload(4), Workload(400)
    assert shapes.edit_flops(1, many) > 5 * shapes.edit_flops(1, few)
    assert shapes.locate_flops(0, few) > shapes.locate_flops(2, few)
    assert shapes.edit_flops(1, Workload(4, edit_steps=10)) > 5 * shapes.edit_flops(1, few)
    full, half = (shapes.edit_memory([1], many, precision) for precision in ("float32", "bfloat16"))  # type: ignore[arg-type]
    assert full.weights == 2 * half.weights
    assert full.total > half.total > half.weights + half.runtime
    assert shapes.edit_memory([1], many, "float16") == half
    assert (
        shapes.locate_memory(0, many, "float32").beyond_weights > shapes.locate_memory(2, few, "float32").beyond_weights
    )


def test_a_model_of_7b_in_half_precision_leaves_room_on_a_card_of_24_gb() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    config = LlavaConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    shapes, work = model_shapes(config), Workload(576, pairs_per_batch=1)
    assert shapes.parameters == pytest.approx(7.06e9, rel=0.01)
    memory = shapes.edit_memory([11], work, "bfloat16")
    assert memory.weights == pytest.approx(14.1e9, rel=0.01)
    assert memory.total < 20e9 < shapes.edit_memory([11], work, "float32").total


def test_a_missing_or_other_config_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ModelLayoutError, match="there is no folder"):
        read_config(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelLayoutError, match=r"no image-text-to-text model .*BertConfig"):
        model_shapes(read_config(str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLayoutError, match="cannot be read"):
        read_config(str(tmp_path))


def test_tokens_that_depend_on_the_picture_are_unknown() -> None:
    from transformers import Qwen2VLConfig

    assert image_tokens(Qwen2VLConfig()) is None


def test_the_rate_is_positive() -> None:
    assert matmul_rate(torch.device("cpu"), torch.float32, size=32, repeats=1) > 0
