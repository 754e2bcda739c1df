"""Mapping of the original tensors to the model: names and shapes at full size, values at a small size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    Blip2Config,
    Blip2ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
)

from lightning_neuralgate.errors import WeightFilesError
from lightning_neuralgate.models.minigpt4.conversion import convert_minigpt4, convert_state_dict, minigpt4_config
from tests.helpers.tiny_llava import tiny_tokenizer
from tests.models.minigpt4 import original
from tests.models.minigpt4.original import FULL, Sizes
from tests.models.minigpt4.original_files import (
    IMAGE,
    PLAIN,
    SIZES,
    Originals,
    assert_original_logits,
    picture_prompt,
    save_blip2,
    write_originals,
)


def _is_for_text(name: str) -> bool:
    """Return whether a Q-Former tensor is in a feed-forward layer for text, which the query tokens skip."""
    return re.search(r"layer\.\d+\.(intermediate|output)\.", name) is not None


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("use_qformer", [False, True])
def test_names_and_shapes_of_the_7b_models(use_qformer: bool) -> None:
    parts = original.configs(FULL)
    config = minigpt4_config(LlamaConfig(**parts["text"]), None, None, use_qformer, 32000)
    vision: Any = config.vision_config
    assert {key: getattr(vision, key) for key in parts["vision"]} == parts["vision"], "the defaults are EVA-ViT-g"
    eva, blip2, language = original.eva_vit_g(FULL, "meta"), original.blip2(FULL, "meta"), original.llama(FULL, "meta")
    checkpoint = original.minigpt4(FULL, use_qformer, "meta")["model"]
    tower = {f"visual_encoder.{name}": value for name, value in eva.items()}
    state = convert_state_dict(config, language, [("eva", tower), ("blip2", blip2), ("checkpoint", checkpoint)])
    assert all(value.is_meta for value in state.values())
    count = sum(value.numel() for value in state.values())
    expected = language | checkpoint
    rows = 2 * FULL.text  # of the image token
    used = {n: v for n, v in eva.items() if ".39." not in n and "fc_norm" not in n and "head" not in n}
    used |= {n: v for n, v in blip2.items() if n.startswith("ln_vision")}
    if use_qformer:
        used |= {
            n: v
            for n, v in blip2.items()
            if n == "query_tokens" or ("Qformer.bert" in n and "word_" not in n and not _is_for_text(n))
        }
    biases = FULL.vision_layers * FULL.vision  # zeros, as biases of the keys
    assert count == sum(value.numel() for value in {**expected, **used}.values()) + rows + biases


@pytest.mark.parametrize("use_qformer", [False, True])
def test_names_and_shapes_of_a_full_blip2_folder(use_qformer: bool) -> None:
    parts = original.configs(FULL)
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(
            Blip2Config(
                vision_config=parts["vision"],
                qformer_config=parts["qformer"],
                text_config=LlamaConfig(**original.configs(SIZES)["text"]),
                num_query_tokens=FULL.queries,
            )
        )
    blip2 = model.state_dict()
    vision, qformer = model.config.vision_config.to_dict(), model.config.qformer_config.to_dict()
    config = minigpt4_config(LlamaConfig(**parts["text"]), vision, qformer, use_qformer, 32000, FULL.queries)
    checkpoint, language = original.minigpt4(FULL, use_qformer, "meta")["model"], original.llama(FULL, "meta")
    state = convert_state_dict(config, language, [("blip2", blip2), ("checkpoint", checkpoint)])
    prefixes = ("vision_model.", *(("qformer.", "query_tokens") if use_qformer else ()))
    used = {name: value.shape for name, value in blip2.items() if name.startswith(prefixes)}
    assert sum(name.startswith("vision_model.encoder.layers.38.") for name in used) == 12
    assert len(state) == len(used) + len(checkpoint) + len(language)
    for name, shape in used.items():
        assert state[f"model.{name.replace('vision_model.', 'vision_tower.')}"].shape == shape, name
    tower = {f"visual_encoder.{name}": value for name, value in original.eva_vit_g(FULL, "meta").items()}
    from_files = [("eva", tower), ("blip2", original.blip2(FULL, "meta")), ("checkpoint", checkpoint)]
    expected = convert_state_dict(config, language, from_files)
    assert {name: value.shape for name, value in state.items()} == {name: v.shape for name, v in expected.items()}
    broken = {name: value for name, value in blip2.items() if name != "vision_model.encoder.layers.38.mlp.fc2.bias"}
    with pytest.raises(WeightFilesError, match=r"missing: model\.vision_tower\.encoder\.layers\.38\.mlp\.fc2\.bias$"):
        convert_state_dict(config, language, [("blip2", broken), ("checkpoint", checkpoint)])


@pytest.mark.parametrize("requested", [None, True, False])
@pytest.mark.parametrize("use_qformer", [False, True])
def test_each_variant_gets_its_final_norm_or_the_requested_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], use_qformer: bool, requested: bool | None
) -> None:
    originals = write_originals(tmp_path, use_qformer)
    tower = originals.load(plain_norm=requested).model.vision_tower
    printed = capsys.readouterr().out
    pixels = picture_prompt(4)[1]
    plain, learned = (
        original.vision_features(originals.tensors["eva"], norm, SIZES, pixels)
        for norm in (PLAIN, originals.tensors["blip2"])
    )
    assert not torch.allclose(plain, learned, atol=1e-2), "the norms differ"
    is_plain = not use_qformer if requested is None else requested
    expected = plain if is_plain else learned
    torch.testing.assert_close(tower(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert f"final norm of the vision tower: {'plain' if is_plain else 'ln_vision of BLIP-2'}" in printed
    assert (tower.post_layernorm.eps, tower.encoder.layers[0].layer_norm1.eps) == (1e-5, 1e-6), "as in the original"


@pytest.mark.parametrize("requested", [None, True, False])
def test_a_final_norm_in_the_checkpoint_takes_precedence(
    originals: Originals, capsys: pytest.CaptureFixture[str], requested: bool | None
) -> None:
    norm = {name: value + 1 for name, value in originals.tensors["blip2"].items() if name.startswith("ln_vision.")}
    torch.save({"model": originals.tensors["checkpoint"] | norm}, originals.checkpoint)
    model = originals.load(plain_norm=requested)
    assert "final norm of the vision tower: ln_vision of the checkpoint" in capsys.readouterr().out
    assert_original_logits(model, originals, norm)


def test_an_incomplete_norm_in_the_checkpoint_raises(originals: Originals) -> None:
    torch.save(
        {"model": originals.tensors["checkpoint"] | {"ln_vision.weight": torch.ones(SIZES.vision)}},
        originals.checkpoint,
    )
    with pytest.raises(WeightFilesError, match=r"missing: model\.vision_tower\.post_layernorm\.bias$"):
        originals.convert()


def test_the_llama_variant_needs_no_blip2(originals: Originals) -> None:
    model = originals.load(blip2=None)
    assert_original_logits(model, originals)


@pytest.mark.parametrize("use_qformer", [False, True])
def test_a_transformers_blip2_folder_gives_the_same_model(tmp_path: Path, use_qformer: bool) -> None:
    originals = write_originals(tmp_path, use_qformer)
    expected = originals.load("a", plain_norm=False).state_dict()
    save_blip2(tmp_path / "blip2", expected)
    out = convert_minigpt4(
        originals.llama, tmp_path / "blip2", originals.checkpoint, tmp_path / "b", use_qformer=use_qformer, plain_norm=False,
        dtype=torch.float32,
    )  # fmt: skip
    from_folder = AutoModelForImageTextToText.from_pretrained(out)
    assert same(from_folder.state_dict(), expected)
    assert from_folder.config.image_seq_length == (SIZES.queries if use_qformer else 4)


@pytest.mark.parametrize("both", [False, True], ids=["as the tower", "as both sources"])
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("use_qformer", [False, True])
def test_a_full_blip2_can_be_the_tower_or_both_sources(
    tmp_path: Path, use_qformer: bool, kind: str, both: bool
) -> None:
    originals = write_originals(tmp_path, use_qformer)
    out = originals.convert("a", plain_norm=False)
    full_blip2 = tmp_path / "full_blip2"
    if kind == "folder":
        save_blip2(full_blip2, AutoModelForImageTextToText.from_pretrained(out).state_dict())
    else:
        tower = {f"visual_encoder.{name}": value for name, value in originals.tensors["eva"].items()}
        torch.save({"model": tower | originals.tensors["blip2"]}, full_blip2)
    originals.eva = full_blip2
    again = originals.convert("b", blip2=full_blip2 if both else None, plain_norm=False)
    assert same(load_file(again / "model.safetensors"), load_file(out / "model.safetensors"))


def test_all_tensor_problems_are_listed_and_nothing_is_written(originals: Originals, tmp_path: Path) -> None:
    broken = dict(originals.tensors["eva"])
    del broken["blocks.1.mlp.fc2.weight"]
    broken["pos_embed"] = torch.zeros(1, 3, SIZES.vision)
    broken["blocks.0.attn.rel_pos"] = torch.zeros(2)
    torch.save(broken, originals.eva)
    torch.save({"model": {**originals.tensors["checkpoint"], "lora_A": torch.zeros(1)}}, originals.checkpoint)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(WeightFilesError) as caught:
        originals.convert()
    message = str(caught.value)
    assert "missing: model.vision_tower.encoder.layers.1.mlp.fc2.weight\n" in message
    assert (
        f"unexpected: visual_encoder.blocks.0.attn.rel_pos of {originals.eva}, lora_A of {originals.checkpoint}\n"
        in message
    )
    assert (
        "wrong shape: model.vision_tower.embeddings.position_embedding is [1, 3, 16], expected [1, 17, 16]" in message
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_tensors_of_the_wrong_shape_are_listed_with_all_other_problems(tmp_path: Path) -> None:
    originals = write_originals(tmp_path, True)
    eva, blip = dict(originals.tensors["eva"]), dict(originals.tensors["blip2"])
    eva["blocks.0.attn.q_bias"] = torch.zeros(1, SIZES.vision)
    eva["blocks.1.attn.v_bias"] = torch.zeros(2)
    eva["blocks.1.norm1.weight"] = torch.tensor(1.0)
    eva["blocks.1.norm1.more"] = torch.tensor(1.0)
    blip["query_tokens"] = torch.zeros(SIZES.qformer)
    del blip["ln_vision.bias"]
    torch.save(eva, originals.eva)
    torch.save({"model": blip}, originals.blip2)
    with pytest.raises(WeightFilesError) as caught:
        originals.convert()
    message = str(caught.value)
    assert "missing: model.vision_tower.post_layernorm.bias\n" in message
    assert "unexpected: model.vision_tower.encoder.layers.1.layer_norm1.more\n" in message
    assert f"query_tokens is [{SIZES.qformer}], expected [1, 32, {SIZES.qformer}]" in message
    assert "layers.0.self_attn.q_bias is [1, 16], expected [16]" in message
    assert "layers.1.self_attn.v_bias is [2], expected [16]" in message
    assert "layers.1.layer_norm1.weight is [], expected [16]" in message
    assert "qkv.bias" not in message, "it is joined from the two"
    assert not (tmp_path / "out").exists()


def test_a_missing_final_norm_raises_with_its_sources(originals: Originals) -> None:
    message = r"post_layernorm\.weight\n.*--plain_norm true.*BLIP-2's file or folder, which contains it as `ln_vision`"
    with pytest.raises(WeightFilesError, match=message):
        originals.convert(blip2=None, plain_norm=False)


def save_llama(folder: Path, vocabulary: int, tied: bool) -> None:
    """Save a language model with large embedding rows beyond the tiny tokenizer's vocabulary."""
    sizes = Sizes(vocabulary=vocabulary)
    llama = LlamaForCausalLM(LlamaConfig(**original.configs(sizes)["text"], tie_word_embeddings=tied))
    language = original.llama(sizes)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        language[name][IMAGE:] *= 100
    if tied:
        language["lm_head.weight"] = language["model.embed_tokens.weight"]
    llama.load_state_dict(language)
    llama.save_pretrained(folder)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("spare", [0, 1, 7])
def test_the_image_token_is_never_the_most_likely_token(originals: Originals, spare: int, tied: bool) -> None:
    save_llama(originals.llama, SIZES.vocabulary + spare, tied)
    model = originals.load()
    assert model.config.image_token_id == IMAGE
    head, embedding = model.lm_head.weight, model.get_input_embeddings().weight
    assert len(head) == len(embedding) == SIZES.vocabulary + max(spare, 1)
    assert (head is embedding) is tied
    others = torch.cat([head[:IMAGE], head[IMAGE + 1 :]])
    torch.testing.assert_close(head[IMAGE], others[:: 2 if tied else 1].mean(0))
    most_likely = (torch.randn(2000, SIZES.text, generator=torch.Generator().manual_seed(0)) @ head.T).argmax(-1)
    assert IMAGE not in most_likely
    before = load_file(originals.llama / "model.safetensors")["model.embed_tokens.weight"]
    is_text = torch.arange(len(before)) != IMAGE
    assert torch.equal(embedding[: len(before)][is_text], before[is_text])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_an_added_padding_token_is_not_mistaken_for_the_image_token(originals: Originals, tied: bool) -> None:
    save_llama(originals.llama, SIZES.vocabulary, tied)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<own pad>"})
    tokenizer.save_pretrained(originals.llama)
    model = originals.load()
    pad, image = model.generation_config.pad_token_id, model.config.image_token_id
    assert (pad, image) == (SIZES.vocabulary, SIZES.vocabulary + 1)
    ids, pixels = torch.tensor([[pad, pad, 5, *[image] * 4, 7]]), picture_prompt(4)[1]
    embeds = model.get_input_embeddings()(ids)
    logits = model(inputs_embeds=embeds, pixel_values=pixels).logits
    torch.testing.assert_close(logits, model(input_ids=ids, pixel_values=pixels).logits)
