"""Checksums of processors and configs, which answers depend on besides the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.hf.identity import config_checksum, processor_checksum
from tests.helpers.tiny_llava import save_tiny_llava, tiny_llava, tiny_processor

CHANGES: dict[str, Callable[[Any], Any]] = {
    "template": lambda processor: setattr(processor, "chat_template", "Say: " + processor.chat_template),
    "token": lambda processor: processor.tokenizer.add_tokens(["passport"]),
    "colours": lambda processor: setattr(processor.image_processor, "image_mean", [0.1, 0.2, 0.3]),
    "image tokens": lambda processor: setattr(processor, "patch_size", 4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_processor_has_another_checksum(change: str) -> None:
    processor = tiny_processor()
    before = processor_checksum(processor)
    assert processor_checksum(tiny_processor()) == before
    CHANGES[change](processor)
    assert processor_checksum(processor) != before


def test_a_processors_checksum_does_not_depend_on_its_use_or_folder(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    for name in ("a", "b"):
        save_tiny_llava(tmp_path / name)
    first, second = (AutoProcessor.from_pretrained(tmp_path / name) for name in ("a", "b"))
    before = processor_checksum(first)
    assert processor_checksum(second) == before
    first.tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2, padding_side="left")
    PrivacyPairCollator(first, "left")([QueryRow("What is it?", "benign", tmp_path / "0.png")] * 2)
    assert processor_checksum(first) == before


def test_a_configs_checksum_does_not_depend_on_its_folder() -> None:
    model = tiny_llava()
    before = config_checksum(model)
    model.config._name_or_path = "elsewhere"
    model.config.text_config._name_or_path = "elsewhere"
    assert config_checksum(model) == before
    model.config.text_config.rms_norm_eps = 0.5
    assert config_checksum(model) != before
