"""Converted MiniGPT-4 folders: they load and answer, and the output folder is replaced safely."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_neuralgate.cli import main
from lightning_neuralgate.errors import DataFormatError, UnsupportedSetupError, WeightFilesError
from lightning_neuralgate.models.minigpt4 import MiniGPT4Processor
from lightning_neuralgate.models.minigpt4.processing import separator_token_ids
from tests.helpers.tiny_llama_tokenizer import tiny_llama_tokenizer
from tests.helpers.tiny_llava import tiny_tokenizer
from tests.models.minigpt4.original_files import (
    IMAGE,
    SIZES,
    Originals,
    assert_original_logits,
    save_blip2,
    write_originals,
)

OLD = "model-old.safetensors"


def test_a_converted_folder_loads_with_the_original_logits(originals: Originals) -> None:
    out = originals.convert()
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert_original_logits(model, originals)
    assert model.config.image_token_id == IMAGE
    assert model.generation_config.eos_token_id == [tiny_tokenizer().eos_token_id]
    processor = AutoProcessor.from_pretrained(out)
    assert processor.image_token_id == IMAGE
    assert processor.image_processor.size["height"] == SIZES.image
    assert "[INST]" in processor.chat_template


def test_a_batch_of_different_prompt_lengths_gives_the_single_answers(originals: Originals) -> None:
    out = originals.convert()
    AutoProcessor.from_pretrained(out).save_pretrained(out)
    processor, model = AutoProcessor.from_pretrained(out), AutoModelForImageTextToText.from_pretrained(out)
    pictures = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    queries = ("What is it?", "Tell me the colour of the receipt, please.")
    content = [[{"type": "image"}, {"type": "text", "text": query}] for query in queries]
    texts = [processor.apply_chat_template([{"role": "user", "content": turn}], tokenize=False) for turn in content]

    def answer(texts: list[str], pictures: list[Image.Image]) -> list[list[int]]:
        inputs = processor(text=texts, images=pictures, return_tensors="pt", padding=True, add_special_tokens=False)
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)
        return tokens[:, inputs["input_ids"].shape[1] :].tolist()

    assert answer(texts, pictures) == answer(texts[:1], pictures[:1]) + answer(texts[1:], pictures[1:])


@pytest.mark.parametrize("legacy", [True, False])
def test_text_pieces_between_special_tokens_are_tokenized_separately(
    originals: Originals, tmp_path: Path, legacy: bool
) -> None:
    tiny_llama_tokenizer(legacy).save_pretrained(originals.llama)
    processor = AutoProcessor.from_pretrained(originals.convert())
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


def test_only_the_qformer_variant_has_a_turn_separator(tmp_path: Path) -> None:
    originals = write_originals(tmp_path, True)
    out = originals.convert()
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert model.config.turn_marks == separator_token_ids(tiny_tokenizer())
    assert model.generation_config.eos_token_id == [tiny_tokenizer().eos_token_id]
    llama = write_originals(tmp_path / "llama2", False)
    model = llama.load()
    assert model.config.turn_marks is None


def test_command_line(originals: Originals, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vision, checkpoint = ["--vision", str(originals.eva)], ["--checkpoint", str(originals.checkpoint)]
    arguments, out = ["--llama", str(originals.llama), *vision, *checkpoint], str(tmp_path / "out")
    assert main(["convert", "minigpt4", *arguments, "--out", out]) == 1
    assert "the tensors of the sources do not fit MiniGPT-4" in capsys.readouterr().err, (
        "the tiny tensors do not have EVA-ViT-g's shapes"
    )
    assert not (tmp_path / "out").exists()
    model = originals.load("known", plain_norm=False)
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


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_conversion_that_fails_while_writing_leaves_no_files(
    originals: Originals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = sorted(tmp_path.iterdir())

    def fails(processor: Any, folder: Path, **options: Any) -> None:
        assert (folder / "model.safetensors").is_file(), "the model is already written"
        raise error

    monkeypatch.setattr(MiniGPT4Processor, "save_pretrained", fails)
    with pytest.raises(type(error)):
        originals.convert()
    assert sorted(tmp_path.iterdir()) == before


def test_drafts_of_a_killed_conversion_are_removed(originals: Originals, tmp_path: Path) -> None:
    draft = tmp_path / ".out.draft-killed__" / "out"
    draft.mkdir(parents=True)
    (draft / "config.json").write_text("{}")
    out = originals.convert()
    assert not draft.parent.exists()
    assert AutoModelForImageTextToText.from_pretrained(out).config.model_type == "minigpt4"


def test_only_a_minigpt4_folder_is_overwritten_and_only_on_request(originals: Originals, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    originals.convert()  # an empty folder is fine
    (out / "model-00002-of-00002.safetensors").touch()
    with pytest.raises(UnsupportedSetupError, match=r"out is not empty; .* overwrite"):
        originals.convert()
    assert (out / "model-00002-of-00002.safetensors").exists()
    (out / "notes.txt").write_text("mine")
    originals.convert(overwrite=True)
    assert not (out / "model-00002-of-00002.safetensors").exists(), "no file of the old model is left"
    assert (out / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".out.draft-*"))
    AutoModelForImageTextToText.from_pretrained(out)
    for path in (originals.llama, originals.eva):
        with pytest.raises(DataFormatError, match=f"{path.name} is the .*, which would be overwritten"):
            originals.convert(path, overwrite=True)
        assert path.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(UnsupportedSetupError, match=r"other is not a MiniGPT-4 folder, .* not overwritten"):
        originals.convert(tmp_path / "other", overwrite=True)


def test_a_failed_replacement_restores_the_old_model(
    originals: Originals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = originals.convert()
    (out / OLD).touch()
    before, rename = sorted(tmp_path.rglob("*")), os.replace

    def fails(source: Path, target: Path) -> None:
        if target == out and (source / "model.safetensors").exists() and "draft" in str(source):
            assert not out.exists(), "the old model has been moved away"
            raise OSError("no space left")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        originals.convert(overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert AutoModelForImageTextToText.from_pretrained(out).config.model_type == "minigpt4"


@pytest.mark.parametrize("empty", [False, True], ids=["no folder", "an empty folder"])
def test_a_model_moved_away_by_a_killed_conversion_is_restored(
    originals: Originals, tmp_path: Path, capsys: pytest.CaptureFixture[str], empty: bool
) -> None:
    out, moved = originals.convert(), tmp_path / ".out.replaced"
    (out / OLD).touch()
    out.rename(moved)
    if empty:
        out.mkdir()
    draft = tmp_path / ".out.draft-killed__" / "out"
    draft.mkdir(parents=True)
    with pytest.raises(WeightFilesError):
        originals.convert(blip2=tmp_path / "none", overwrite=True)
    assert (out / OLD).exists(), "it is restored before anything else can fail"
    assert draft.exists()
    assert not moved.exists()
    assert f"{out}: restored the model that an interrupted conversion had moved away" in capsys.readouterr().out
    out.rename(moved)
    with pytest.raises(UnsupportedSetupError, match="out is not empty"):
        originals.convert()
    assert (out / OLD).exists()
    out.rename(moved)
    originals.convert(overwrite=True)
    assert not (out / OLD).exists()
    assert not list(tmp_path.glob(".out.*"))


def test_a_leftoverover_old_model_is_removed_by_the_next_replacement(originals: Originals, tmp_path: Path) -> None:
    out, leftover = originals.convert(), tmp_path / ".out.replaced"
    shutil.copytree(out, leftover)
    (leftover / "model-older.safetensors").touch()
    (out / OLD).touch()
    with pytest.raises(UnsupportedSetupError):
        originals.convert()
    assert leftover.exists()
    assert (out / OLD).exists()
    originals.convert(overwrite=True)
    assert not list(tmp_path.glob(".out.*"))
    assert not list(out.glob("model-old*"))


def test_a_symlink_to_the_folder_is_kept(originals: Originals, tmp_path: Path) -> None:
    real, out = tmp_path / "large" / "real", tmp_path / "out"
    out.symlink_to(originals.convert(real))
    (real / OLD).touch()
    originals.convert(overwrite=True)
    assert out.is_symlink()
    assert (real / "model.safetensors").exists()
    assert not (real / OLD).exists()
    assert list(real.parent.iterdir()) == [real]
