"""MiniGPT-4's original files on disk, at a small size, and their conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration, LlamaConfig, LlamaForCausalLM

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
    """Paths of the original files, and the tensors in them."""

    llama: Path
    eva: Path
    blip2: Path
    checkpoint: Path
    tensors: dict[str, dict[str, Tensor]]


def write_originals(folder: Path, use_qformer: bool) -> Originals:
    """Write random original files."""
    folder.mkdir(exist_ok=True)
    language = original.llama(SIZES)
    llama = LlamaForCausalLM(LlamaConfig(**original.configs(SIZES)["text"]))
    llama.load_state_dict(language)
    llama.save_pretrained(folder / "llama")
    tiny_tokenizer().save_pretrained(folder / "llama")
    tensors = {"eva": original.eva_vit_g(SIZES), "blip2": original.blip2(SIZES), "language": language}
    checkpoint = original.minigpt4(SIZES, use_qformer)
    tensors["checkpoint"] = checkpoint["model"]
    torch.save(tensors["eva"], folder / "eva_vit_g.pth")
    torch.save({"model": tensors["blip2"]}, folder / "blip2.pth")
    torch.save(checkpoint, folder / "minigpt4.pth")
    return Originals(folder / "llama", folder / "eva_vit_g.pth", folder / "blip2.pth", folder / "minigpt4.pth", tensors)


def convert(originals: Originals, out: Path, use_qformer: bool = False, **options: Any) -> Path:
    """Convert in float32, with the small sizes."""
    arguments: dict[str, Any] = {
        "blip2": originals.blip2,
        "use_qformer": use_qformer,
        "vision_config": original.configs(SIZES)["vision"],
        "dtype": torch.float32,
        **options,
    }
    return convert_minigpt4(originals.llama, originals.eva, originals.checkpoint, out, **arguments)


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


def expected_logits(originals: Originals, ids: Tensor, pixels: Tensor, norm: dict[str, Tensor] | None = None) -> Tensor:
    """Return the logits of the network in plain torch."""
    tensors = originals.tensors
    features = original.vision_features(tensors["eva"], norm or PLAIN, SIZES, pixels)
    tokens = original.image_tokens(tensors["blip2"], tensors["checkpoint"], SIZES, features, use_qformer=False)
    embeds = tensors["language"]["model.embed_tokens.weight"][ids.clamp(max=IMAGE - 1)]
    embeds[ids == IMAGE] = tokens.flatten(0, 1)
    return original.logits(tensors["language"], SIZES, embeds, torch.ones_like(ids).bool())
