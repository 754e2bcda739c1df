"""MiniGPT-4's original files on disk, at a small size, and their conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    Blip2Config,
    Blip2ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
)

from lightning_neuralgate.models.minigpt4.conversion import convert_minigpt4
from tests.helpers.tiny_llava import tiny_tokenizer
from tests.models.minigpt4 import original
from tests.models.minigpt4.original import Sizes

SIZES = Sizes(vocabulary=len(tiny_tokenizer()))
IMAGE = SIZES.vocabulary
"""Id of the image token, the first after the language model's own tokens."""
PLAIN = {"ln_vision.weight": torch.ones(SIZES.vision), "ln_vision.bias": torch.zeros(SIZES.vision)}
"""Final norm of the released LLaMA-2 model."""


@dataclass
class Originals:
    """Paths of the original files in a folder, and the tensors in them."""

    folder: Path
    use_qformer: bool
    tensors: dict[str, dict[str, Tensor]]
    llama: Path
    eva: Path
    blip2: Path
    checkpoint: Path

    def convert(self, out: str | Path = "out", **options: Any) -> Path:
        """Convert in float32, with the small sizes, to a path relative to the folder."""
        parts = original.configs(SIZES)
        arguments: dict[str, Any] = {
            "blip2": self.blip2,
            "use_qformer": self.use_qformer,
            "vision_config": parts["vision"],
            "qformer_config": parts["qformer"],
            "dtype": torch.float32,
            **options,
        }
        return convert_minigpt4(self.llama, self.eva, self.checkpoint, self.folder / out, **arguments)

    def load(self, out: str | Path = "out", **options: Any) -> Any:
        """Convert, and return the loaded model."""
        return AutoModelForImageTextToText.from_pretrained(self.convert(out, **options))


def write_originals(folder: Path, use_qformer: bool) -> Originals:
    """Write random original files."""
    folder.mkdir(exist_ok=True)
    tensors = {
        "eva": original.eva_vit_g(SIZES),
        "blip2": original.blip2(SIZES),
        "checkpoint": original.minigpt4(SIZES, use_qformer)["model"],
        "language": original.llama(SIZES),
    }
    files = Originals(
        folder, use_qformer, tensors,
        folder / "llama", folder / "eva_vit_g.pth", folder / "blip2.pth", folder / "minigpt4.pth",
    )  # fmt: skip
    llama = LlamaForCausalLM(LlamaConfig(**original.configs(SIZES)["text"]))
    llama.load_state_dict(tensors["language"])
    llama.save_pretrained(files.llama)
    tiny_tokenizer().save_pretrained(files.llama)
    torch.save(tensors["eva"], files.eva)
    torch.save({"model": tensors["blip2"]}, files.blip2)
    torch.save({"model": tensors["checkpoint"]}, files.checkpoint)
    return files


def save_blip2(folder: Path, minigpt4: dict[str, Tensor]) -> None:
    """Save a BLIP-2 folder of transformers with the tower and, if there is one, the Q-Former of a MiniGPT-4."""
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
    blip.load_state_dict({name: minigpt4[source] for name, source in names.items() if source in minigpt4}, strict=False)
    blip.save_pretrained(folder)


def picture_prompt(tokens: int) -> tuple[Tensor, Tensor]:
    """Return the token ids of a prompt with one picture, and its pixels."""
    ids = torch.tensor([[5, 6, *[IMAGE] * tokens, 7, 8]])
    return ids, torch.randn(1, 3, SIZES.image, SIZES.image, generator=torch.Generator().manual_seed(5))


def assert_original_logits(model: Any, originals: Originals, norm: dict[str, Tensor] | None = None) -> None:
    """Compare a converted LLaMA-2 variant with the network in plain torch."""
    tensors = originals.tensors
    ids, pixels = picture_prompt(4)
    features = original.vision_features(tensors["eva"], norm or PLAIN, SIZES, pixels)
    tokens = original.image_tokens(tensors["blip2"], tensors["checkpoint"], SIZES, features, use_qformer=False)
    embeds = tensors["language"]["model.embed_tokens.weight"][ids.clamp(max=IMAGE - 1)]
    embeds[ids == IMAGE] = tokens.flatten(0, 1)
    expected = original.logits(tensors["language"], SIZES, embeds, torch.ones_like(ids).bool())
    found = model(input_ids=ids, pixel_values=pixels).logits[..., :IMAGE]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
