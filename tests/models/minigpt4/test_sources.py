"""Readers of the original files and folders, and their error messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from lightning_neuralgate.cli import main
from lightning_neuralgate.errors import WeightFilesError
from lightning_neuralgate.models.minigpt4.sources import read_tensors
from tests.models.minigpt4.original_files import SIZES, Originals


def test_a_file_without_named_tensors_raises(originals: Originals, tmp_path: Path) -> None:
    torch.save({"model": {"a": Path("code")}}, tmp_path / "code.pth")
    with pytest.raises(WeightFilesError, match=r"code\.pth cannot be read as a tensor file"):
        read_tensors(tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightFilesError, match=r"list\.pth is not a mapping of names to tensors"):
        read_tensors(tmp_path / "list.pth")
    with pytest.raises(WeightFilesError, match=r"none\.pth cannot be read as a tensor file: .*No such file"):
        read_tensors(tmp_path / "none.pth")
    with pytest.raises(WeightFilesError, match="is a 'llama' model; give a transformers folder of BLIP-2"):
        originals.convert(blip2=originals.llama)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
def test_an_unreadable_file_raises_with_its_problem(tmp_path: Path, legacy: bool) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "complete.pth", _use_new_zipfile_serialization=not legacy)
    torch.save({"a": Path("code")}, tmp_path / "code.pth", _use_new_zipfile_serialization=not legacy)
    complete = (tmp_path / "complete.pth").read_bytes()
    for name, content, problem in (
        (
            "page",
            b"<!DOCTYPE html>\n<html></html>\n",
            r"it is not a torch file, it starts with b'<!DOCTYPE html>.*'; download",
        ),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\n", "it starts with b'version https://git-lfs"),
        ("empty", b"", "it is empty; download it again"),
        ("half", complete[: len(complete) // 2], r"it is corrupt or truncated; download it again \(\w+\)"),
        ("start", complete[:30], "it is corrupt"),
        (
            "code",
            (tmp_path / "code.pth").read_bytes(),
            "contains objects other than tensors and plain containers, which could run code",
        ),
    ):
        file = tmp_path / f"{name}.pth"
        file.write_bytes(content)
        with pytest.raises(
            WeightFilesError, match=rf"{name}\.pth cannot be read as a tensor file: .*{problem}"
        ) as caught:
            read_tensors(file)
        assert "weights_only" not in str(caught.value)
        assert caught.value.__cause__ is not None


def test_a_wrong_folder_raises_with_the_expected_one(
    originals: Originals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, other, broken = (tmp_path / name for name in ("empty", "other", "broken"))
    for folder in (empty, other, broken):
        folder.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    (broken / "config.json").write_text('{"model_type": "lama"}')
    llama, blip2 = "give a transformers folder of LLaMA-2-chat or Vicuna", "give a transformers folder of BLIP-2"
    sources = {
        "llama": originals.llama,
        "vision": originals.eva,
        "blip2": originals.blip2,
        "checkpoint": originals.checkpoint,
    }
    for option, path, message in (
        ("llama", originals.checkpoint, f"{originals.checkpoint} is not a folder with a config.json; {llama}"),
        ("llama", tmp_path / "none", f"{tmp_path / 'none'} is not a folder with a config.json; {llama}"),
        ("llama", empty, f"{empty} is not a folder with a config.json; {llama}"),
        ("llama", other, f"{other} is a 'bert' model; {llama}"),
        ("llama", broken, f"{broken / 'config.json'} cannot be read: "),
        ("vision", empty, f"{empty} is not a folder with a config.json; {blip2}"),
        ("vision", other, f"{other} is a 'bert' model; {blip2}"),
        ("blip2", empty, f"{empty} is not a folder with a config.json; {blip2}"),
        ("vision", tmp_path / "none", f"{tmp_path / 'none'} cannot be read as a tensor file"),
        ("checkpoint", empty, f"{empty} cannot be read as a tensor file"),
    ):
        arguments = [part for name, file in (sources | {option: path}).items() for part in (f"--{name}", str(file))]
        assert main(["convert", "minigpt4", *arguments, "--out", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_quantized_language_model_raises(originals: Originals) -> None:
    config = LlamaConfig.from_pretrained(originals.llama)
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.save_pretrained(originals.llama)
    with pytest.raises(WeightFilesError, match=r"llama is quantized \(bitsandbytes\); .*, not quantized"):
        originals.convert()


def test_a_folder_without_a_readable_tokenizer_raises(originals: Originals) -> None:
    for file in originals.llama.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(WeightFilesError, match=r"llama has no tokenizer.json or tokenizer.model"):
        originals.convert()
    (originals.llama / "tokenizer.model").write_bytes(b"sentences")
    with pytest.raises(
        WeightFilesError, match=r"tokenizer of .*llama cannot be loaded: (.|\n)*pip install sentencepiece"
    ):
        originals.convert()


@pytest.mark.parametrize("missing", [["bos_token"], ["eos_token"], ["bos_token", "eos_token"]])
@pytest.mark.parametrize("value", [None, ""], ids=["none", "empty"])
def test_a_tokenizer_without_bos_or_eos_token_raises(
    originals: Originals, tmp_path: Path, missing: list[str], value: str | None
) -> None:
    file = originals.llama / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | dict.fromkeys(missing, value)))
    message = rf"tokenizer of {originals.llama} has no {' and no '.join(missing)}.* tokenizer_config\.json"
    with pytest.raises(WeightFilesError, match=message):
        originals.convert()
    file.write_text(json.dumps({name: token for name, token in config.items() if name not in missing}))
    with pytest.raises(WeightFilesError, match=message):
        originals.convert()
    assert not (tmp_path / "out").exists()


def test_all_problems_of_the_language_model_are_listed(originals: Originals) -> None:
    file = originals.llama / "model.safetensors"
    language = load_file(file)
    language["model.layers.0.mlp.extra.weight"] = language.pop("model.layers.1.mlp.up_proj.weight")
    language["model.norm.weight"] = torch.zeros(3)
    language["model.embed_tokens.weight"] = torch.zeros(5, SIZES.text)
    save_file(language, file, metadata={"format": "pt"})
    with pytest.raises(WeightFilesError) as caught:
        originals.convert()
    message = str(caught.value)
    assert (
        "missing: model.layers.1.mlp.up_proj.weight\nunexpected: model.layers.0.mlp.extra.weight\nwrong shape: "
        in message
    )
    assert "model.norm.weight is [3], expected [32]" in message
    assert f"model.embed_tokens.weight is [5, 32], expected [{SIZES.vocabulary}, 32]" in message
    file.unlink()
    with pytest.raises(WeightFilesError, match="llama cannot be loaded as a language model"):
        originals.convert()
    assert not (originals.folder / "out").exists()
