"""`find_decoder` finds the text decoder in every model family and wrapper."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.hf.decoder import MLP_PROJECTIONS, find_decoder, find_hf_model
from tests.helpers.tiny_models import (
    DEFAULT_SIZES,
    TINY_FAMILIES,
    TinyFamily,
    TinySizes,
    build_llava,
    tiny_bart,
    tiny_clip_vision,
    tiny_gpt2,
    tiny_instructblip,
    tiny_llama,
    tiny_qwen3_vl_moe,
)


class Holder(LightningModule):
    """A LightningModule with the given children, in this order."""

    def __init__(self, **children: Any) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


def _add_lora(model: PreTrainedModel, layers: str, projection: str, adapter_name: str = "default") -> PeftModel:
    pattern = rf"{re.escape(layers)}\.\d+\.{re.escape(projection)}"
    return get_peft_model(model, LoraConfig(r=2, target_modules=pattern), adapter_name=adapter_name)


@pytest.fixture(params=TINY_FAMILIES)
def family(request: pytest.FixtureRequest) -> TinyFamily:
    return TINY_FAMILIES[request.param]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "bare": lambda model: model,
    "lightning": lambda model: Holder(model=model),
    "lightning-deep": lambda model: Holder(head=nn.Linear(2, 2), student=nn.ModuleDict({"net": Holder(lvlm=model)})),
    "compiled": torch.compile,
    "lightning-compiled": lambda model: Holder(model=torch.compile(model)),
    "ddp": DistributedDataParallel,
    "ddp-lightning-compiled": lambda model: DistributedDataParallel(Holder(model=torch.compile(model))),
}


@pytest.mark.parametrize("wrapper", ["bare", "lightning"])
@pytest.mark.parametrize(
    "sizes",
    [DEFAULT_SIZES, TinySizes(text_layers=3, text_size=32, vision_layers=2, vision_size=64)],
    ids=["same-sizes", "different-sizes"],
)
def test_every_family(family: TinyFamily, sizes: TinySizes, wrapper: str) -> None:
    model = family.build(sizes)
    expected: Any = model.get_submodule(family.layers)
    tower: Any = model.get_submodule(family.vision_layers)
    # With a tower of another path or depth, the test would prove nothing.
    assert len(tower) == sizes.vision_layers

    layout = find_decoder(WRAPPERS[wrapper](model))

    assert layout.layers is expected
    assert (layout.layers_path, layout.projection) == (family.layers, family.projection)
    assert (layout.num_layers, layout.hidden_size) == (sizes.text_layers, sizes.text_size)
    for index in range(sizes.text_layers):
        path = f"{family.layers}.{index}.{family.projection}"
        assert layout.projection_path(index) == path
        assert layout.layer(index) is expected[index]
        assert layout.output_projection(index) is model.get_submodule(path)


@pytest.mark.parametrize("wrapper", ["bare", "lightning"])
def test_every_family_behind_peft(family: TinyFamily, wrapper: str) -> None:
    model = family.build(DEFAULT_SIZES)
    layers: Any = model.get_submodule(family.layers)
    linear = layers[1].get_submodule(family.projection)
    wrapped = WRAPPERS[wrapper](_add_lora(model, family.layers, family.projection))

    layout = find_decoder(wrapped)

    assert layout.layers is layers
    assert layout.layers_path == family.layers
    projection = layout.output_projection(1)
    assert isinstance(projection, LoraLayer)
    assert projection.base_layer is linear
    assert find_hf_model(wrapped) is model
    assert model.get_submodule(layout.projection_path(1)) is projection


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.usefixtures("process_group")
def test_every_wrapper(wrapper: str, lora: bool) -> None:
    model: Any = build_llava()
    layers = model.model.language_model.layers
    wrapped = WRAPPERS[wrapper](_add_lora(model, "model.language_model.layers", "mlp.down_proj") if lora else model)
    projection = layers[0].mlp.down_proj

    layout = find_decoder(wrapped)

    assert find_hf_model(wrapped) is model
    assert layout.layers is layers
    assert isinstance(projection, LoraLayer) is lora
    assert layout.output_projection(0) is projection
    assert model.get_submodule(layout.projection_path(0)) is projection


def test_a_compiled_layer_inside_the_model() -> None:
    model = build_llava()
    layers: Any = model.get_submodule("model.language_model.layers")
    projection = layers[0].mlp.down_proj
    layers[0] = torch.compile(layers[0])

    layout = find_decoder(model)

    assert layout.output_projection(0) is projection
    assert model.get_submodule(layout.projection_path(0)) is projection


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "smolvlm", "idefics3", "gemma3"])
def test_text_without_an_image_passes_through_the_projections(name: str) -> None:
    model = TINY_FAMILIES[name].build(DEFAULT_SIZES)
    layout = find_decoder(Holder(model=model))
    shapes: list[torch.Size] = []
    for index in range(layout.num_layers):
        layout.output_projection(index).register_forward_hook(lambda *call: shapes.append(call[-1].shape))

    model(input_ids=torch.tensor([[3, 4, 5]]))

    assert shapes == [(1, 3, layout.hidden_size)] * layout.num_layers


@pytest.mark.parametrize(
    ("build", "projection"),
    [
        pytest.param(tiny_llama, "model.layers.0.mlp.down_proj", id="llama"),
        pytest.param(lambda: tiny_llama().model, "layers.0.mlp.down_proj", id="llama-without-head"),
        pytest.param(tiny_bart, "model.decoder.layers.0.fc2", id="bart-encoder-as-deep-as-decoder"),
        pytest.param(tiny_gpt2, "transformer.h.0.mlp.c_proj", id="gpt2-conv1d"),
    ],
)
def test_language_models_without_vision(build: Callable[[], PreTrainedModel], projection: str) -> None:
    model = build()

    layout = find_decoder(model)

    assert layout.projection_path(0) == projection
    assert layout.output_projection(0) is model.get_submodule(projection)


def test_projection_in_peft_modules_to_save() -> None:
    model = tiny_llama()
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["down_proj"])

    layout = find_decoder(get_peft_model(model, config))

    assert isinstance(layout.output_projection(1), ModulesToSaveWrapper)
    assert layout.projection_path(1) == "model.layers.1.mlp.down_proj"


def test_adapter_layer_without_a_size() -> None:
    model: Any = tiny_llama()
    for layer in model.model.layers:
        layer.mlp.down_proj = nn.ModuleDict({"base_layer": layer.mlp.down_proj})

    assert find_decoder(model).output_projection(0) is model.model.layers[0].mlp.down_proj


def test_an_adapter_named_experts_is_not_a_mixture_of_experts() -> None:
    model: Any = tiny_llama()

    layout = find_decoder(_add_lora(model, "model.layers", "mlp.down_proj", adapter_name="experts"))

    assert layout.output_projection(0) is model.model.layers[0].mlp.down_proj


class FlatModel(LlamaForCausalLM):
    """A model from outside transformers: one config for all parts, and no `get_decoder`."""

    def get_decoder(self) -> nn.Module:
        raise NotImplementedError


@pytest.mark.parametrize("kind", ["plain-modules", "pretrained-model"])
def test_a_tower_next_to_a_decoder_without_get_decoder(kind: str) -> None:
    model = FlatModel(LlamaConfig(**DEFAULT_SIZES.text()))
    if kind == "plain-modules":
        model.visual_encoder = nn.ModuleDict({"layers": copy.deepcopy(model.model.layers)})
    else:
        model.encoder = tiny_clip_vision()

    layout = find_decoder(model)

    assert layout.layers is model.model.layers


def test_two_equal_decoders_without_get_decoder_are_refused() -> None:
    model = FlatModel(LlamaConfig(**DEFAULT_SIZES.text()))
    model.second = nn.ModuleDict({"layers": copy.deepcopy(model.model.layers)})

    with pytest.raises(ModelLayoutError, match=r"(?s)FlatModel.*more than one.*`model\.layers`.*`second\.layers`"):
        find_decoder(model)


@pytest.mark.parametrize("index", [-1, 2])
@pytest.mark.parametrize("method", ["layer", "output_projection", "projection_path"])
def test_index_outside_the_decoder(method: str, index: int) -> None:
    layout = find_decoder(tiny_llama())

    with pytest.raises(ModelLayoutError, match=rf"no decoder layer {index}: `model\.layers` has layers 0 to 1"):
        getattr(layout, method)(index)


def test_dense_layers_of_a_mixed_model() -> None:
    model = tiny_qwen3_vl_moe(dense_layers=(1,))

    layout = find_decoder(model)

    assert layout.output_projection(1) is model.model.language_model.layers[1].mlp.down_proj
    with pytest.raises(
        ModelLayoutError, match=r"Layer 0 .*mixture of experts \(`mlp\.experts`.*`mlp\.down_proj`: \[1\]"
    ):
        layout.output_projection(0)


def _replace_mlps(make: Callable[[], nn.Module]) -> PreTrainedModel:
    model = tiny_llama()
    for layer in model.model.layers:
        layer.mlp = make()
    return model


def _with_wrong_depth() -> PreTrainedModel:
    model = tiny_llama()
    model.config.num_hidden_layers = 7
    return model


class Shell(PreTrainedModel):
    """A model from outside transformers without a text config."""

    def __init__(self, config: PreTrainedConfig, **children: nn.Module) -> None:
        super().__init__(config)
        for name, child in children.items():
            setattr(self, name, child)


def test_model_without_a_text_config() -> None:
    model = tiny_llama()

    assert find_hf_model(Shell(PreTrainedConfig(), tower=tiny_clip_vision(), llm=model)) is model


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        pytest.param(
            tiny_qwen3_vl_moe,
            [
                "Qwen3VLMoeForConditionalGeneration",
                "`model.language_model.layers`",
                "mixture of experts (`mlp.experts`",
            ],
            id="experts-only",
        ),
        pytest.param(
            lambda: _replace_mlps(lambda: nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 32))),
            ["LlamaForCausalLM", "`model.layers`", *MLP_PROJECTIONS, "`mlp.1` (Linear, 32 output features)"],
            id="unknown-name",
        ),
        pytest.param(
            lambda: _replace_mlps(lambda: nn.ModuleDict({"down_proj": nn.Linear(32, 48)})),
            ["32 output features at `mlp.down_proj`", "`mlp.down_proj` (Linear, 48 output features)"],
            id="wrong-size",
        ),
        pytest.param(
            _with_wrong_depth,
            ["LlamaForCausalLM", "ModuleList of 7 layers", "`model.layers` (2 x LlamaDecoderLayer)"],
            id="wrong-depth",
        ),
        pytest.param(
            tiny_clip_vision,
            ["CLIPVisionModel", "CLIPVisionConfig", "no `vocab_size`"],
            id="vision-only",
        ),
        pytest.param(
            lambda: Holder(encoder=tiny_clip_vision()),
            ["encoder: No text decoder in CLIPVisionModel"],
            id="vision-only-in-lightning",
        ),
        pytest.param(
            lambda: Shell(PreTrainedConfig.from_dict({"vocab_size": 8})),
            ["PreTrainedConfig", "None layers of size None"],
            id="config-without-sizes",
        ),
        pytest.param(
            BoringModel, ["BoringModel", "transformers.PreTrainedModel", "`layer` (Linear)"], id="no-hf-model"
        ),
        pytest.param(
            lambda: Holder(student=build_llava(), teacher=build_llava()),
            ["`student` (LlavaForConditionalGeneration)", "`teacher` (LlavaForConditionalGeneration)"],
            id="two-models",
        ),
    ],
)
def test_error_names_what_was_found(make: Callable[[], nn.Module], parts: list[str]) -> None:
    with pytest.raises(ModelLayoutError) as caught:
        find_decoder(make())

    message = str(caught.value)
    assert [part for part in parts if part not in message] == []


def test_error_reports_the_outermost_model_only() -> None:
    with pytest.raises(ModelLayoutError, match=r"^No text decoder in Shell[^\n]*$"):
        find_hf_model(Shell(PreTrainedConfig(), tower=tiny_clip_vision()))


def _tiny_clip() -> CLIPModel:
    text: dict[str, Any] = DEFAULT_SIZES.text()
    del text["num_key_value_heads"]
    return CLIPModel(CLIPConfig(text_config=text, vision_config=DEFAULT_SIZES.vision(), projection_dim=8))


@pytest.mark.parametrize(
    "hold",
    [
        pytest.param(lambda model: {"scorer": _tiny_clip(), "model": model}, id="next-to-clip"),
        pytest.param(lambda model: {"tower": tiny_clip_vision(), "model": model}, id="next-to-a-tower"),
        pytest.param(lambda model: {"text": model.language_model, "model": model}, id="next-to-its-submodule"),
        pytest.param(lambda model: {"model": model, "same": model}, id="held-twice"),
        pytest.param(
            lambda model: {"peft": _add_lora(model, "language_model.model.layers", "mlp.down_proj"), "base": model},
            id="next-to-its-peft-wrapper",
        ),
    ],
)
def test_finds_the_model_among_several(hold: Callable[[PreTrainedModel], dict[str, nn.Module]]) -> None:
    model = tiny_instructblip()

    assert find_hf_model(Holder(**hold(model))) is model
