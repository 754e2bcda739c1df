"""From original files to a folder, at full size by name and shape, at a small size with real tensors."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
)

from lightning_neuralgate.cli import main
from lightning_neuralgate.errors import UnsupportedSetupError, WeightFilesError
from lightning_neuralgate.models.minigpt4 import MiniGPT4Processor
from lightning_neuralgate.models.minigpt4.conversion import (
    convert_minigpt4,
    converted_state,
    minigpt4_config,
)
from lightning_neuralgate.models.minigpt4.sources import read_tensors
from tests.helpers.tiny_llama_tokenizer import tiny_llama_tokenizer
from tests.helpers.tiny_llava import tiny_tokenizer
from tests.models.minigpt4 import original
from tests.models.minigpt4.original import FULL, Sizes

SIZES = Sizes(vocabulary=len(tiny_tokenizer()))
IMAGE = SIZES.vocabulary


@pytest.mark.parametrize("use_qformer", [False, True])
def test_every_name_and_shape_of_the_7b_models(use_qformer: bool) -> None:
    parts = original.configs(FULL)
    config = minigpt4_config(LlamaConfig(**parts["text"]), None, None, use_qformer, 32000)
    vision: Any = config.vision_config
    assert {key: getattr(vision, key) for key in parts["vision"]} == parts["vision"], "the defaults are EVA-ViT-g"
    sources = {
        "eva": {f"visual_encoder.{name}": value for name, value in original.eva_vit_g(FULL, "meta").items()},
        "blip2": original.blip2(FULL, "meta"),
        "own": original.minigpt4(FULL, use_qformer, "meta")["model"],
    }
    state = converted_state(config, original.llama(FULL, "meta"), list(sources.items()))
    assert all(value.is_meta for value in state.values())
    count = sum(value.numel() for value in state.values())
    given = original.llama(FULL, "meta") | sources["own"]
    rows = 2 * FULL.text  # the image token's
    kept = {n: v for n, v in sources["eva"].items() if ".39." not in n and "fc_norm" not in n and "head" not in n}
    kept |= {n: v for n, v in sources["blip2"].items() if n.startswith("ln_vision")}
    if use_qformer:
        kept |= {
            n: v
            for n, v in sources["blip2"].items()
            if n == "query_tokens" or ("Qformer.bert" in n and "word_" not in n and not _for_text(n))
        }
    biases = FULL.vision_layers * FULL.vision  # keys have a bias, too, of zeros
    assert count == sum(value.numel() for value in {**given, **kept}.values()) + rows + biases


@pytest.mark.parametrize("use_qformer", [False, True])
def test_every_name_and_shape_of_a_full_blip2_folder(use_qformer: bool) -> None:
    parts = original.configs(FULL)
    with torch.device("meta"):
        blip = Blip2ForConditionalGeneration(
            Blip2Config(
                vision_config=parts["vision"],
                qformer_config=parts["qformer"],
                text_config=LlamaConfig(**original.configs(SIZES)["text"]),
                num_query_tokens=FULL.queries,
            )
        )
    given = blip.state_dict()
    config = minigpt4_config(
        LlamaConfig(**parts["text"]), blip.config.vision_config.to_dict(), blip.config.qformer_config.to_dict(), use_qformer,
        32000, FULL.queries,
    )  # fmt: skip
    own, words = original.minigpt4(FULL, use_qformer, "meta")["model"], original.llama(FULL, "meta")
    state = converted_state(config, words, [("blip2", given), ("own", own)])
    heads = ("vision_model.", *(("qformer.", "query_tokens") if use_qformer else ()))
    kept = {name: value.shape for name, value in given.items() if name.startswith(heads)}
    assert sum(name.startswith("vision_model.encoder.layers.38.") for name in kept) == 12
    assert len(state) == len(kept) + len(own) + len(words)
    for name, shape in kept.items():
        assert state[f"model.{name.replace('vision_model.', 'vision_tower.')}"].shape == shape, name
    tower = {f"visual_encoder.{name}": value for name, value in original.eva_vit_g(FULL, "meta").items()}
    from_files = [("eva", tower), ("blip2", original.blip2(FULL, "meta")), ("own", own)]
    expected = converted_state(config, words, from_files)
    assert {name: value.shape for name, value in state.items()} == {name: v.shape for name, v in expected.items()}
    broken = {name: value for name, value in given.items() if name != "vision_model.encoder.layers.38.mlp.fc2.bias"}
    with pytest.raises(WeightFilesError, match=r"missing: model\.vision_tower\.encoder\.layers\.38\.mlp\.fc2\.bias$"):
        converted_state(config, words, [("blip2", broken), ("own", own)])


def _for_text(name: str) -> bool:
    """Whether a tensor of the Q-Former is in the half of its layers that no query goes through."""
    return re.search(r"layer\.\d+\.(intermediate|output)\.", name) is not None


@dataclass
class Files:
    """Original files on disk, and the tensors in them."""

    llama: Path
    eva: Path
    blip2: Path
    checkpoint: Path
    tensors: dict[str, dict[str, Tensor]]


def files(folder: Path, use_qformer: bool, sizes: Sizes = SIZES) -> Files:
    folder.mkdir(exist_ok=True)
    words = original.llama(sizes)
    llama = LlamaForCausalLM(LlamaConfig(**original.configs(sizes)["text"]))
    llama.load_state_dict(words)
    llama.save_pretrained(folder / "llama")
    tiny_tokenizer().save_pretrained(folder / "llama")
    tensors = {"eva": original.eva_vit_g(sizes), "blip2": original.blip2(sizes), "words": words}
    own = original.minigpt4(sizes, use_qformer)
    tensors["own"] = own["model"]
    torch.save(tensors["eva"], folder / "eva_vit_g.pth")
    torch.save({"model": tensors["blip2"]}, folder / "blip2.pth")
    torch.save(own, folder / "minigpt4.pth")
    return Files(folder / "llama", folder / "eva_vit_g.pth", folder / "blip2.pth", folder / "minigpt4.pth", tensors)


def convert(given: Files, out: Path, use_qformer: bool = False, **others: Any) -> Path:
    arguments: dict[str, Any] = {
        "blip2": given.blip2,
        "use_qformer": use_qformer,
        "vision_config": original.configs(SIZES)["vision"],
        "dtype": torch.float32,
        **others,
    }
    return convert_minigpt4(given.llama, given.eva, given.checkpoint, out, **arguments)


PLAIN = {"ln_vision.weight": torch.ones(SIZES.vision), "ln_vision.bias": torch.zeros(SIZES.vision)}
"""The final norm of the released LLaMA-2 model."""


def logits(given: Files, ids: Tensor, pixels: Tensor, norm: dict[str, Tensor] | None = None) -> Tensor:
    tensors = given.tensors
    features = original.vision_features(tensors["eva"], norm or PLAIN, SIZES, pixels)
    tokens = original.image_tokens(tensors["blip2"], tensors["own"], SIZES, features, use_qformer=False)
    embeds = tensors["words"]["model.embed_tokens.weight"][ids.clamp(max=IMAGE - 1)]
    embeds[ids == IMAGE] = tokens.flatten(0, 1)
    return original.logits(tensors["words"], SIZES, embeds, torch.ones_like(ids).bool())


def asked(tokens: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[5, 6, *[IMAGE] * tokens, 7, 8]])
    return ids, torch.randn(1, 3, SIZES.image, SIZES.image, generator=torch.Generator().manual_seed(5))


def test_a_folder_from_original_files(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    out = convert(given, tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(out)
    ids, pixels = asked(4)
    found = model(input_ids=ids, pixel_values=pixels).logits[..., :IMAGE]
    torch.testing.assert_close(found, logits(given, ids, pixels), atol=1e-5, rtol=1e-5)
    assert model.config.image_token_id == IMAGE
    assert model.generation_config.eos_token_id == [tiny_tokenizer().eos_token_id]
    processor = AutoProcessor.from_pretrained(out)
    assert processor.image_token_id == IMAGE
    assert processor.image_processor.size["height"] == SIZES.image
    assert "[INST]" in processor.chat_template


def test_prompts_of_unlike_lengths_are_answered_as_each_alone(tmp_path: Path) -> None:
    out = convert(files(tmp_path, False), tmp_path / "out")
    AutoProcessor.from_pretrained(out).save_pretrained(out)
    processor, model = AutoProcessor.from_pretrained(out), AutoModelForImageTextToText.from_pretrained(out)
    pictures = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    queries = ("What is it?", "Tell me the colour of the receipt, please.")
    content = [[{"type": "image"}, {"type": "text", "text": query}] for query in queries]
    texts = [processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False) for parts in content]

    def told(texts: list[str], pictures: list[Image.Image]) -> list[list[int]]:
        inputs = processor(text=texts, images=pictures, return_tensors="pt", padding=True, add_special_tokens=False)
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)
        return tokens[:, inputs["input_ids"].shape[1] :].tolist()

    assert told(texts, pictures) == told(texts[:1], pictures[:1]) + told(texts[1:], pictures[1:])


@pytest.mark.parametrize("legacy", [True, False])
def test_each_piece_of_text_around_pictures_is_tokenized_by_itself(tmp_path: Path, legacy: bool) -> None:
    given = files(tmp_path, False)
    tiny_llama_tokenizer(legacy).save_pretrained(given.llama)
    processor = AutoProcessor.from_pretrained(convert(given, tmp_path / "out"))
    processor.save_pretrained(tmp_path / "again")
    text = "<s>Give the image<s>[INST] <Img><ImageHere><ImageHere></Img> What is it? [/INST] "
    for tokenizer in (processor.tokenizer, AutoProcessor.from_pretrained(tmp_path / "again").tokenizer):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == [
            "<s>", "▁Give", "▁the", "▁image", "<s>", "▁[", "INST", "]", "▁<", "Img", ">", "<ImageHere>", "<ImageHere>",
            "▁</", "Img", ">", "▁What", "▁is", "▁it", "?", "▁[", "/", "INST", "]", "▁",
        ]  # fmt: skip
        assert tokenizer.decode(ids[-12:], skip_special_tokens=True) == "</Img> What is it? [/INST] "
        assert tokenizer.convert_ids_to_tokens(tokenizer("What")["input_ids"]) == ["<s>", "▁What"]


@pytest.mark.parametrize("asked_for", [None, True, False])
@pytest.mark.parametrize("use_qformer", [False, True])
def test_each_variant_has_the_norm_it_was_trained_behind_or_the_one_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], use_qformer: bool, asked_for: bool | None
) -> None:
    given = files(tmp_path, use_qformer)
    qformer = original.configs(SIZES)["qformer"]
    out = convert(given, tmp_path / "out", use_qformer, plain_norm=asked_for, qformer_config=qformer)
    told = capsys.readouterr().out
    tower = AutoModelForImageTextToText.from_pretrained(out).model.vision_tower
    pixels = asked(4)[1]
    plain, learnt = (
        original.vision_features(given.tensors["eva"], norm, SIZES, pixels) for norm in (PLAIN, given.tensors["blip2"])
    )
    assert not torch.allclose(plain, learnt, atol=1e-2), "they do differ"
    is_plain = not use_qformer if asked_for is None else asked_for
    expected = plain if is_plain else learnt
    torch.testing.assert_close(tower(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert f"final norm of the vision tower: {'plain' if is_plain else 'ln_vision of BLIP-2'}" in told
    assert (tower.post_layernorm.eps, tower.encoder.layers[0].layer_norm1.eps) == (1e-5, 1e-6), "as in the original"


@pytest.mark.parametrize("asked_for", [None, True, False])
def test_a_checkpoint_keeps_the_norm_it_brings_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked_for: bool | None
) -> None:
    given = files(tmp_path, False)
    norm = {name: value + 1 for name, value in given.tensors["blip2"].items() if name.startswith("ln_vision.")}
    torch.save({"model": given.tensors["own"] | norm}, given.checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(convert(given, tmp_path / "out", plain_norm=asked_for))
    assert "final norm of the vision tower: ln_vision of the checkpoint" in capsys.readouterr().out
    ids, pixels = asked(4)
    found = model(input_ids=ids, pixel_values=pixels).logits[..., :IMAGE]
    torch.testing.assert_close(found, logits(given, ids, pixels, norm), atol=1e-5, rtol=1e-5)


def test_half_a_norm_of_a_checkpoint_is_not_filled_up(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    torch.save({"model": given.tensors["own"] | {"ln_vision.weight": torch.ones(SIZES.vision)}}, given.checkpoint)
    with pytest.raises(WeightFilesError, match=r"missing: model\.vision_tower\.post_layernorm\.bias$"):
        convert(given, tmp_path / "out")


def test_the_llama_variant_needs_no_blip2(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    model = AutoModelForImageTextToText.from_pretrained(convert(given, tmp_path / "out", blip2=None))
    ids, pixels = asked(4)
    found = model(input_ids=ids, pixel_values=pixels).logits[..., :IMAGE]
    torch.testing.assert_close(found, logits(given, ids, pixels), atol=1e-5, rtol=1e-5)


def save_blip2(folder: Path, minigpt4: dict[str, Tensor]) -> None:
    """transformers' BLIP-2 with a MiniGPT-4's tower and, if it has one, Q-Former."""
    parts = original.configs(SIZES)
    blip = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=parts["vision"],
            qformer_config=parts["qformer"],
            text_config=LlamaConfig(**parts["text"]),
            num_query_tokens=SIZES.queries,
        )
    )
    names = {name: f"model.{name.replace('vision_model', 'vision_tower')}" for name in blip.state_dict()}
    blip.load_state_dict({name: minigpt4[own] for name, own in names.items() if own in minigpt4}, strict=False)
    blip.save_pretrained(folder)


@pytest.mark.parametrize("use_qformer", [False, True])
def test_a_blip2_folder_of_transformers_gives_the_same(tmp_path: Path, use_qformer: bool) -> None:
    given = files(tmp_path, use_qformer)
    parts = original.configs(SIZES)
    from_files = AutoModelForImageTextToText.from_pretrained(
        convert(given, tmp_path / "a", use_qformer, qformer_config=parts["qformer"], plain_norm=False)
    )
    own = from_files.state_dict()
    save_blip2(tmp_path / "blip2", own)
    out = convert_minigpt4(
        given.llama, tmp_path / "blip2", given.checkpoint, tmp_path / "b", use_qformer=use_qformer, plain_norm=False,
        dtype=torch.float32,
    )  # fmt: skip
    again = AutoModelForImageTextToText.from_pretrained(out)
    assert again.state_dict().keys() == own.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, own[name]), name
    assert again.config.image_seq_length == (SIZES.queries if use_qformer else 4)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("twice", [False, True], ids=["as the tower", "as both"])
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("use_qformer", [False, True])
def test_a_whole_blip2_gives_the_same_as_tower_and_as_both(
    tmp_path: Path, use_qformer: bool, kind: str, twice: bool
) -> None:
    given = files(tmp_path, use_qformer)
    others = {"qformer_config": original.configs(SIZES)["qformer"], "plain_norm": False}
    out = convert(given, tmp_path / "a", use_qformer, **others)
    whole = tmp_path / "whole"
    if kind == "folder":
        save_blip2(whole, AutoModelForImageTextToText.from_pretrained(out).state_dict())
    else:
        tower = {f"visual_encoder.{name}": value for name, value in given.tensors["eva"].items()}
        torch.save({"model": tower | given.tensors["blip2"]}, whole)
    given.eva = whole
    again = convert(given, tmp_path / "b", use_qformer, blip2=whole if twice else None, **others)
    assert same(weights(again), weights(out))


def test_all_that_is_wrong_is_listed_and_nothing_written(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    broken = dict(given.tensors["eva"])
    del broken["blocks.1.mlp.fc2.weight"]
    broken["pos_embed"] = torch.zeros(1, 3, SIZES.vision)
    broken["blocks.0.attn.rel_pos"] = torch.zeros(2)
    torch.save(broken, given.eva)
    torch.save({"model": {**given.tensors["own"], "lora_A": torch.zeros(1)}}, given.checkpoint)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(WeightFilesError) as caught:
        convert(given, tmp_path / "out")
    told = str(caught.value)
    assert "missing: model.vision_tower.encoder.layers.1.mlp.fc2.weight\n" in told
    assert f"surplus: visual_encoder.blocks.0.attn.rel_pos of {given.eva}, lora_A of {given.checkpoint}\n" in told
    assert "misshaped: model.vision_tower.embeddings.position_embedding is [1, 3, 16], expected [1, 17, 16]" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_misshaped_tensors_of_every_kind_are_listed_with_the_rest(tmp_path: Path) -> None:
    given = files(tmp_path, True)
    eva, blip = dict(given.tensors["eva"]), dict(given.tensors["blip2"])
    eva["blocks.0.attn.q_bias"] = torch.zeros(1, SIZES.vision)
    eva["blocks.1.attn.v_bias"] = torch.zeros(2)
    eva["blocks.1.norm1.weight"] = torch.tensor(1.0)
    eva["blocks.1.norm1.more"] = torch.tensor(1.0)
    blip["query_tokens"] = torch.zeros(SIZES.qformer)
    del blip["ln_vision.bias"]
    torch.save(eva, given.eva)
    torch.save({"model": blip}, given.blip2)
    with pytest.raises(WeightFilesError) as caught:
        convert(given, tmp_path / "out", True, qformer_config=original.configs(SIZES)["qformer"])
    told = str(caught.value)
    assert "missing: model.vision_tower.post_layernorm.bias\n" in told
    assert "surplus: model.vision_tower.encoder.layers.1.layer_norm1.more\n" in told
    assert f"query_tokens is [{SIZES.qformer}], expected [1, 32, {SIZES.qformer}]" in told
    assert "layers.0.self_attn.q_bias is [1, 16], expected [16]" in told
    assert "layers.1.self_attn.v_bias is [2], expected [16]" in told
    assert "layers.1.layer_norm1.weight is [], expected [16]" in told
    assert "qkv.bias" not in told, "it is made of the two"
    assert not (tmp_path / "out").exists()


def test_misshaped_tensors_of_the_language_model_are_listed_with_the_rest(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    file = given.llama / "model.safetensors"
    words = load_file(file)
    words["model.layers.0.mlp.extra.weight"] = words.pop("model.layers.1.mlp.up_proj.weight")
    words["model.norm.weight"] = torch.zeros(3)
    words["model.embed_tokens.weight"] = torch.zeros(5, SIZES.text)
    save_file(words, file, metadata={"format": "pt"})
    with pytest.raises(WeightFilesError) as caught:
        convert(given, tmp_path / "out")
    told = str(caught.value)
    assert "missing: model.layers.1.mlp.up_proj.weight\nsurplus: model.layers.0.mlp.extra.weight\nmisshaped: " in told
    assert "model.norm.weight is [3], expected [32]" in told
    assert f"model.embed_tokens.weight is [5, 32], expected [{SIZES.vocabulary}, 32]" in told


def test_a_missing_norm_says_where_it_comes_from(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    told = r"post_layernorm\.weight\n.*--plain_norm true.*`ln_vision`, comes from BLIP-2"
    with pytest.raises(WeightFilesError, match=told):
        convert(given, tmp_path / "out", blip2=None, plain_norm=False)


def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    torch.save({"model": {"a": Path("code")}}, tmp_path / "code.pth")
    with pytest.raises(WeightFilesError, match=r"code\.pth cannot be read as a file of tensors"):
        read_tensors(tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightFilesError, match=r"list\.pth holds no tensors by name"):
        read_tensors(tmp_path / "list.pth")
    with pytest.raises(WeightFilesError, match=r"none\.pth cannot be read as a file of tensors: .*No such file"):
        read_tensors(tmp_path / "none.pth")
    with pytest.raises(WeightFilesError, match="holds a 'llama'; a BLIP-2 folder was expected"):
        convert(given, tmp_path / "out", blip2=given.llama)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
def test_a_file_that_torch_cannot_read_is_told_in_words_of_our_own(tmp_path: Path, legacy: bool) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth", _use_new_zipfile_serialization=not legacy)
    torch.save({"a": Path("code")}, tmp_path / "code.pth", _use_new_zipfile_serialization=not legacy)
    whole = (tmp_path / "whole.pth").read_bytes()
    for name, content, told in (
        (
            "page",
            b"<!DOCTYPE html>\n<html></html>\n",
            r"torch has not written it, since it begins with b'<!DOCTYPE html>.*'; download",
        ),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\n", "since it begins with b'version https://git-lfs"),
        ("empty", b"", "it is empty; download it again"),
        ("half", whole[: len(whole) // 2], r"it is damaged or cut short; download it again \(\w+\)"),
        ("start", whole[:30], "it is damaged"),
        ("code", (tmp_path / "code.pth").read_bytes(), "holds more than tensors and plain containers .* may run code"),
    ):
        file = tmp_path / f"{name}.pth"
        file.write_bytes(content)
        with pytest.raises(
            WeightFilesError, match=rf"{name}\.pth cannot be read as a file of tensors: .*{told}"
        ) as caught:
            read_tensors(file)
        assert "weights_only" not in str(caught.value)
        assert caught.value.__cause__ is not None


def test_a_wrong_folder_is_named_with_what_was_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = files(tmp_path, False)
    empty, other, broken = (tmp_path / name for name in ("empty", "other", "broken"))
    for folder in (empty, other, broken):
        folder.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    (broken / "config.json").write_text('{"model_type": "lama"}')
    llama, vision = "a LLaMA-2-chat or Vicuna folder of transformers was expected", "a BLIP-2 folder was expected"
    own = {"llama": given.llama, "vision": given.eva, "blip2": given.blip2, "checkpoint": given.checkpoint}
    for option, place, told in (
        ("llama", given.checkpoint, f"{given.checkpoint} is no folder; {llama}"),
        ("llama", tmp_path / "none", f"{tmp_path / 'none'} is no folder; {llama}"),
        ("llama", empty, f"{empty} holds no config.json; {llama}"),
        ("llama", other, f"{other} holds a 'bert'; {llama}"),
        ("llama", broken, f"{broken} has a config.json that cannot be read: "),
        ("vision", empty, f"{empty} holds no config.json; {vision}"),
        ("vision", other, f"{other} holds a 'bert'; {vision}"),
        ("blip2", empty, f"{empty} holds no config.json; {vision}"),
        ("vision", tmp_path / "none", f"{tmp_path / 'none'} cannot be read as a file of tensors"),
        ("checkpoint", empty, f"{empty} cannot be read as a file of tensors"),
    ):
        arguments = [part for name, path in (own | {option: place}).items() for part in (f"--{name}", str(path))]
        assert main(["convert", "minigpt4", *arguments, "--out", str(tmp_path / "out")]) == 1
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_quantized_language_model_is_refused(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    config = LlamaConfig.from_pretrained(given.llama)
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.save_pretrained(given.llama)
    with pytest.raises(
        WeightFilesError, match=r"llama holds a quantized model \(bitsandbytes\); .* was expected, whole"
    ):
        convert(given, tmp_path / "out")


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    for file in given.llama.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(WeightFilesError, match=r"llama holds no tokenizer.json or tokenizer.model"):
        convert(given, tmp_path / "out")
    (given.llama / "tokenizer.model").write_bytes(b"sentences")
    with pytest.raises(
        WeightFilesError, match=r"tokenizer of .*llama cannot be loaded: (.|\n)*pip install sentencepiece"
    ):
        convert(given, tmp_path / "out")


@pytest.mark.parametrize("lacking", [["bos_token"], ["eos_token"], ["bos_token", "eos_token"]])
@pytest.mark.parametrize("value", [None, ""], ids=["none", "empty"])
def test_a_tokenizer_that_begins_or_ends_no_text_is_refused(
    tmp_path: Path, lacking: list[str], value: str | None
) -> None:
    given = files(tmp_path, False)
    file = given.llama / "tokenizer_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | dict.fromkeys(lacking, value)))
    told = rf"tokenizer of {given.llama} has no {' and no '.join(lacking)}; .* tokenizer_config\.json"
    with pytest.raises(WeightFilesError, match=told):
        convert(given, tmp_path / "out")
    file.write_text(json.dumps({name: token for name, token in said.items() if name not in lacking}))
    with pytest.raises(WeightFilesError, match=told):
        convert(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_conversion_that_fails_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    given = files(tmp_path, False)
    before = sorted(tmp_path.iterdir())

    def fails(processor: Any, folder: Path, **options: Any) -> None:
        assert (folder / "model.safetensors").is_file(), "half of it is written"
        raise error

    monkeypatch.setattr(MiniGPT4Processor, "save_pretrained", fails)
    with pytest.raises(type(error)):
        convert(given, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_killed_conversion_left_is_cleared_away(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    left = tmp_path / ".out.draft-killed" / "out"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    out = convert(given, tmp_path / "out")
    assert not left.parent.exists()
    assert AutoModelForImageTextToText.from_pretrained(out).config.model_type == "minigpt4"


def test_a_folder_with_something_in_it_is_kept_unless_it_is_a_model_to_overwrite(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    out = tmp_path / "out"
    out.mkdir()
    convert(given, out)  # an empty one will do
    (out / "model-00002-of-00002.safetensors").touch()
    with pytest.raises(UnsupportedSetupError, match=r"out holds something already; .* overwrite"):
        convert(given, out)
    assert (out / "model-00002-of-00002.safetensors").exists()
    convert(given, out, overwrite=True)
    assert not (out / "model-00002-of-00002.safetensors").exists(), "no part of the old one is left"
    assert not list(tmp_path.glob(".out.draft-*"))
    AutoModelForImageTextToText.from_pretrained(out)
    for precious in (given.llama, given.eva):
        with pytest.raises(UnsupportedSetupError, match=f"{precious.name} holds no MiniGPT-4, .* not overwritten"):
            convert(given, precious, overwrite=True)
        assert precious.exists()


def test_an_error_while_the_new_model_takes_its_place_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = files(tmp_path, False)
    out = convert(given, tmp_path / "out")
    (out / "old").touch()
    before, rename = sorted(tmp_path.rglob("*")), os.replace

    def fails(source: Path, target: Path) -> None:
        if target == out and (source / "model.safetensors").exists() and "draft" in str(source):
            assert not out.exists(), "the old one is out of the way"
            raise OSError("no space left")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        convert(given, out, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert AutoModelForImageTextToText.from_pretrained(out).config.model_type == "minigpt4"


@pytest.mark.parametrize("empty", [False, True], ids=["no folder", "an empty folder"])
def test_a_model_that_a_killed_conversion_had_moved_away_is_put_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], empty: bool
) -> None:
    given = files(tmp_path, False)
    out, left = convert(given, tmp_path / "out"), tmp_path / ".out.replaced"
    (out / "old").touch()
    out.rename(left)
    if empty:
        out.mkdir()
    draft = tmp_path / ".out.draft-killed" / "out"
    draft.mkdir(parents=True)
    with pytest.raises(WeightFilesError):
        convert(given, out, blip2=tmp_path / "none", overwrite=True)
    assert (out / "old").exists(), "whatever is wrong with the rest"
    assert draft.exists()
    assert not left.exists()
    assert (
        f"{out}: a conversion that was to replace it has been interrupted; the old one is back"
        in capsys.readouterr().out
    )
    out.rename(left)
    with pytest.raises(UnsupportedSetupError, match="out holds something already"):
        convert(given, out)
    assert (out / "old").exists()
    out.rename(left)
    convert(given, out, overwrite=True)
    assert not (out / "old").exists()
    assert not list(tmp_path.glob(".out.*"))


def test_an_old_model_whose_place_is_taken_goes_with_the_next_that_is_replaced(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    out, left = convert(given, tmp_path / "out"), tmp_path / ".out.replaced"
    shutil.copytree(out, left)
    (left / "older").touch()
    (out / "old").touch()
    with pytest.raises(UnsupportedSetupError):
        convert(given, out)
    assert left.exists()
    assert (out / "old").exists()
    convert(given, out, overwrite=True)
    assert not list(tmp_path.glob(".out.*"))
    assert not {"older", "old"} & {path.name for path in out.iterdir()}


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    real, out = tmp_path / "large" / "real", tmp_path / "out"
    out.symlink_to(convert(given, real))
    (real / "old").touch()
    convert(given, out, overwrite=True)
    assert out.is_symlink()
    assert (real / "model.safetensors").exists()
    assert not (real / "old").exists()
    assert list(real.parent.iterdir()) == [real]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = files(tmp_path, False)
    arguments = ["--llama", str(given.llama), "--vision", str(given.eva), "--checkpoint", str(given.checkpoint)]
    out = str(tmp_path / "out")
    assert main(["convert", "minigpt4", *arguments, "--out", out]) == 1
    assert "these tensors do not make a MiniGPT-4" in capsys.readouterr().err, "tiny tensors are no EVA-ViT-g"
    assert not (tmp_path / "out").exists()
    model = AutoModelForImageTextToText.from_pretrained(convert(given, tmp_path / "known", plain_norm=False))
    save_blip2(tmp_path / "blip2", model.state_dict())
    arguments[3] = str(tmp_path / "blip2")
    assert main(["convert", "minigpt4", *arguments, "--dtype", "float32", "--out", str(tmp_path / "plain")]) == 0
    assert "final norm of the vision tower: plain" in capsys.readouterr().out
    arguments += ["--plain_norm", "false"]
    assert main(["convert", "minigpt4", *arguments, "--dtype", "float32", "--out", out]) == 0
    assert f"MiniGPT-4 written to {out}" in capsys.readouterr().out
    assert main(["convert", "minigpt4", *arguments, "--out", out]) == 1
    assert "--overwrite true" in capsys.readouterr().err
    assert main(["convert", "minigpt4", *arguments, "--dtype", "float32", "--out", out, "--overwrite", "true"]) == 0
    again = AutoModelForImageTextToText.from_pretrained(out)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def save_llama(folder: Path, vocabulary: int, tied: bool) -> None:
    """A language model in the place of another, whose rows that no token of the tiny tokenizer has are loud."""
    sizes = Sizes(vocabulary=vocabulary)
    llama = LlamaForCausalLM(LlamaConfig(**original.configs(sizes)["text"], tie_word_embeddings=tied))
    words = original.llama(sizes)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        words[name][IMAGE:] *= 100
    if tied:
        words["lm_head.weight"] = words["model.embed_tokens.weight"]
    llama.load_state_dict(words)
    llama.save_pretrained(folder)


@pytest.mark.parametrize("tied", [False, True], ids=["two tables", "one table"])
@pytest.mark.parametrize("spare", [0, 1, 7])
def test_the_image_token_is_never_the_likeliest_word_whatever_the_vocabulary(
    tmp_path: Path, spare: int, tied: bool
) -> None:
    given = files(tmp_path, False)
    save_llama(given.llama, SIZES.vocabulary + spare, tied)
    model = AutoModelForImageTextToText.from_pretrained(convert(given, tmp_path / "out"))
    assert model.config.image_token_id == IMAGE
    head, words = model.lm_head.weight, model.get_input_embeddings().weight
    assert len(head) == len(words) == SIZES.vocabulary + max(spare, 1)
    assert (head is words) is tied
    others = torch.cat([head[:IMAGE], head[IMAGE + 1 :]])
    torch.testing.assert_close(head[IMAGE], others[:: 2 if tied else 1].mean(0))
    likeliest = (torch.randn(2000, SIZES.text, generator=torch.Generator().manual_seed(0)) @ head.T).argmax(-1)
    assert IMAGE not in likeliest
    before = load_file(given.llama / "model.safetensors")["model.embed_tokens.weight"]
    kept = torch.arange(len(before)) != IMAGE
    assert torch.equal(words[: len(before)][kept], before[kept])


@pytest.mark.parametrize("tied", [False, True], ids=["two tables", "one table"])
def test_a_padding_token_that_the_vocabulary_lacks_is_no_place_for_a_picture(tmp_path: Path, tied: bool) -> None:
    given = files(tmp_path, False)
    save_llama(given.llama, SIZES.vocabulary, tied)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<own pad>"})
    tokenizer.save_pretrained(given.llama)
    model = AutoModelForImageTextToText.from_pretrained(convert(given, tmp_path / "out"))
    pad, image = model.generation_config.pad_token_id, model.config.image_token_id
    assert (pad, image) == (SIZES.vocabulary, SIZES.vocabulary + 1)
    ids, pixels = torch.tensor([[pad, pad, 5, *[image] * 4, 7]]), asked(4)[1]
    embeds = model.get_input_embeddings()(ids)
    found = model(inputs_embeds=embeds, pixel_values=pixels).logits
    torch.testing.assert_close(found, model(input_ids=ids, pixel_values=pixels).logits)


def test_no_part_of_the_language_model_is_made_up(tmp_path: Path) -> None:
    given = files(tmp_path, False)
    file = given.llama / "model.safetensors"
    words = load_file(file)
    words["model.layers.0.mlp.extra.weight"] = words.pop("model.layers.1.mlp.up_proj.weight")
    save_file(words, file, metadata={"format": "pt"})
    with pytest.raises(WeightFilesError, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight\nsurplus: .*extra"):
        convert(given, tmp_path / "out")
    file.unlink()
    with pytest.raises(WeightFilesError, match="llama cannot be loaded as a language model"):
        convert(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
