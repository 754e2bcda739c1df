"""Reference MiniGPT-4: random tensors with the original names, and the network in plain torch, written from its description.

Independent of this package and of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the original's modules; the defaults are tiny."""

    vision: int = 16
    vision_mlp: int = 24
    vision_heads: int = 2
    vision_layers: int = 2
    image: int = 32
    patch: int = 8
    qformer: int = 12
    qformer_mlp: int = 20
    qformer_heads: int = 2
    qformer_layers: int = 4
    queries: int = 3
    text: int = 32
    text_mlp: int = 48
    text_heads: int = 4
    text_kv_heads: int = 4
    text_layers: int = 3
    vocabulary: int = 96


FULL = Sizes(
    vision=1408, vision_mlp=6144, vision_heads=16, vision_layers=39, image=224, patch=14, qformer=768, qformer_mlp=3072,
    qformer_heads=12, qformer_layers=12, queries=32, text=4096, text_mlp=11008, text_heads=32, text_kv_heads=32,
    text_layers=32, vocabulary=32000,
)  # fmt: skip
"""EVA-ViT-g/14 at 224 px, BLIP-2's Q-Former and LLaMA-2-7B."""


class _Maker:
    """Random tensors by name."""

    def __init__(self, seed: int, device: str) -> None:
        self.random, self.device, self.tensors = torch.Generator().manual_seed(seed), device, Tensors()

    def __call__(self, name: str, *shape: int) -> None:
        if self.device == "meta":
            self.tensors[name] = torch.empty(shape, device="meta")
            return
        value = torch.randn(shape, generator=self.random) / math.sqrt(shape[-1])
        self.tensors[name] = 1 + 0.1 * value if "norm" in name.lower() and name.endswith("weight") else value

    def linear(self, name: str, into: int, outof: int) -> None:
        self(f"{name}.weight", into, outof)
        self(f"{name}.bias", into)

    def norm(self, name: str, width: int) -> None:
        self(f"{name}.weight", width)
        self(f"{name}.bias", width)


def eva_vit_g(sizes: Sizes, device: str = "cpu") -> Tensors:
    """Return `eva_vit_g.pth`, with an unused last block, norm and classifier head."""
    make = _Maker(1, device)
    width = sizes.vision
    make("cls_token", 1, 1, width)
    make("pos_embed", 1, (sizes.image // sizes.patch) ** 2 + 1, width)
    make("patch_embed.proj.weight", width, 3, sizes.patch, sizes.patch)
    make("patch_embed.proj.bias", width)
    for block in range(sizes.vision_layers + 1):
        name = f"blocks.{block}"
        make.norm(f"{name}.norm1", width)
        make(f"{name}.attn.q_bias", width)
        make(f"{name}.attn.v_bias", width)
        make(f"{name}.attn.qkv.weight", 3 * width, width)
        make.linear(f"{name}.attn.proj", width, width)
        make.norm(f"{name}.norm2", width)
        make.linear(f"{name}.mlp.fc1", sizes.vision_mlp, width)
        make.linear(f"{name}.mlp.fc2", width, sizes.vision_mlp)
    make.norm("fc_norm", width)
    make.linear("head", 7, width)
    return make.tensors


def blip2(sizes: Sizes, device: str = "cpu") -> Tensors:
    """Return BLIP-2's pretrained file: `ln_vision`, query tokens and Q-Former, with its modules for text."""
    make = _Maker(2, device)
    make.norm("ln_vision", sizes.vision)
    make("query_tokens", 1, sizes.queries, sizes.qformer)
    make("Qformer.bert.embeddings.word_embeddings.weight", 11, sizes.qformer)
    make.norm("Qformer.bert.embeddings.LayerNorm", sizes.qformer)
    for layer in range(sizes.qformer_layers):
        name = f"Qformer.bert.encoder.layer.{layer}"
        for part in ("attention", "crossattention")[: 2 - layer % 2]:
            seen = sizes.vision if part == "crossattention" else sizes.qformer
            make.linear(f"{name}.{part}.self.query", sizes.qformer, sizes.qformer)
            make.linear(f"{name}.{part}.self.key", sizes.qformer, seen)
            make.linear(f"{name}.{part}.self.value", sizes.qformer, seen)
            make.linear(f"{name}.{part}.output.dense", sizes.qformer, sizes.qformer)
            make.norm(f"{name}.{part}.output.LayerNorm", sizes.qformer)
        for suffix in ("", "_query"):
            make.linear(f"{name}.intermediate{suffix}.dense", sizes.qformer_mlp, sizes.qformer)
            make.linear(f"{name}.output{suffix}.dense", sizes.qformer, sizes.qformer_mlp)
            make.norm(f"{name}.output{suffix}.LayerNorm", sizes.qformer)
    make.linear("Qformer.cls.predictions.transform.dense", sizes.qformer, sizes.qformer)
    make.linear("t5_proj", 5, sizes.qformer)
    return make.tensors


def minigpt4(sizes: Sizes, use_qformer: bool, device: str = "cpu") -> dict[str, Tensors]:
    """Return MiniGPT-4's own checkpoint."""
    make = _Maker(3, device)
    make.linear("llama_proj", sizes.text, sizes.qformer if use_qformer else 4 * sizes.vision)
    return {"model": make.tensors}


def llama(sizes: Sizes, device: str = "cpu") -> Tensors:
    """Return the language model's tensors."""
    make = _Maker(4, device)
    width, head = sizes.text, sizes.text // sizes.text_heads
    make("model.embed_tokens.weight", sizes.vocabulary, width)
    for layer in range(sizes.text_layers):
        name = f"model.layers.{layer}"
        make(f"{name}.input_layernorm.weight", width)
        for part, heads in (("q", sizes.text_heads), ("k", sizes.text_kv_heads), ("v", sizes.text_kv_heads)):
            make(f"{name}.self_attn.{part}_proj.weight", heads * head, width)
        make(f"{name}.self_attn.o_proj.weight", width, width)
        make(f"{name}.post_attention_layernorm.weight", width)
        make(f"{name}.mlp.gate_proj.weight", sizes.text_mlp, width)
        make(f"{name}.mlp.up_proj.weight", sizes.text_mlp, width)
        make(f"{name}.mlp.down_proj.weight", width, sizes.text_mlp)
    make("model.norm.weight", width)
    make("lm_head.weight", sizes.vocabulary, width)
    return make.tensors


def _linear(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ tensors[f"{name}.weight"].T
    return y + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else y


def _norm(tensors: Mapping[str, Tensor], name: str, x: Tensor, epsilon: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, hidden: Tensor | None = None) -> Tensor:
    """Softmax attention of (B, T, heads * size); `hidden` (B, T, S) is True at masked positions."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None], -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def vision_features(eva: Tensors, norm: Tensors, sizes: Sizes, pixels: Tensor) -> Tensor:
    """Return EVA's features after `ln_vision`, class token first, (B, 1 + patches, width)."""
    size = sizes.patch
    # a convolution with stride = kernel size is one matrix product per patch
    patches = pixels.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ eva["patch_embed.proj.weight"].flatten(1).T + eva["patch_embed.proj.bias"]
    x = torch.cat([eva["cls_token"].expand(len(x), -1, -1), x], 1) + eva["pos_embed"]
    for block in range(sizes.vision_layers):
        name = f"blocks.{block}"
        seen = _norm(eva, f"{name}.norm1", x, 1e-6)
        bias = torch.cat([eva[f"{name}.attn.q_bias"], torch.zeros(sizes.vision), eva[f"{name}.attn.v_bias"]])
        query, key, value = (seen @ eva[f"{name}.attn.qkv.weight"].T + bias).chunk(3, -1)
        x = x + _linear(eva, f"{name}.attn.proj", _attend(query, key, value, sizes.vision_heads))
        inner = F.gelu(_linear(eva, f"{name}.mlp.fc1", _norm(eva, f"{name}.norm2", x, 1e-6)))
        x = x + _linear(eva, f"{name}.mlp.fc2", inner)
    return _norm(norm, "ln_vision", x, 1e-5)


def _gather(tensors: Tensors, name: str, x: Tensor, seen: Tensor, heads: int) -> Tensor:
    """BERT's attention block, with the norm after the residual sum."""
    query = _linear(tensors, f"{name}.self.query", x)
    key, value = (_linear(tensors, f"{name}.self.{part}", seen) for part in ("key", "value"))
    out = _linear(tensors, f"{name}.output.dense", _attend(query, key, value, heads))
    return _norm(tensors, f"{name}.output.LayerNorm", out + x, 1e-12)


def image_tokens(blip: Tensors, checkpoint: Tensors, sizes: Sizes, features: Tensor, use_qformer: bool) -> Tensor:
    """Return the image tokens of the language model, (B, tokens, text width)."""
    if not use_qformer:
        rows = [
            torch.cat([features[:, 1 + 4 * run + step] for step in range(4)], -1)
            for run in range((features.shape[1] - 1) // 4)
        ]
        return _linear(checkpoint, "llama_proj", torch.stack(rows, 1))
    x = blip["query_tokens"].expand(len(features), -1, -1)
    x = _norm(blip, "Qformer.bert.embeddings.LayerNorm", x, 1e-12)
    for layer in range(sizes.qformer_layers):
        name = f"Qformer.bert.encoder.layer.{layer}"
        x = _gather(blip, f"{name}.attention", x, x, sizes.qformer_heads)
        if layer % 2 == 0:
            x = _gather(blip, f"{name}.crossattention", x, features, sizes.qformer_heads)
        inner = F.gelu(_linear(blip, f"{name}.intermediate_query.dense", x))
        x = _norm(blip, f"{name}.output_query.LayerNorm", _linear(blip, f"{name}.output_query.dense", inner) + x, 1e-12)
    return _linear(checkpoint, "llama_proj", x)


def _rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Apply rotary position embeddings to (B, T, heads, size)."""
    half = x.shape[-1] // 2
    angles = positions[..., None, None] * 10000.0 ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def _rms(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * tensors[f"{name}.weight"]


def logits(language: Tensors, sizes: Sizes, embeds: Tensor, mask: Tensor) -> Tensor:
    """Return LLaMA's logits (B, T, vocabulary) on embeddings (B, T, width); `mask` (B, T) is False on padding."""
    size = sizes.text // sizes.text_heads
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    later = torch.ones(embeds.shape[1], embeds.shape[1]).triu(1).bool()
    hidden = later | ~mask[:, None, :]
    hidden = hidden & ~torch.eye(embeds.shape[1]).bool()  # padding attends to itself to avoid a division by zero
    x = embeds
    for layer in range(sizes.text_layers):
        name = f"model.layers.{layer}"
        seen = _rms(language, f"{name}.input_layernorm", x)
        q, k, v = (_linear(language, f"{name}.self_attn.{part}_proj", seen).unflatten(-1, (-1, size)) for part in "qkv")
        q, k = _rotated(q, positions), _rotated(k, positions)
        out = _attend(q.flatten(2), k.flatten(2), v.flatten(2), sizes.text_heads, hidden)
        x = x + _linear(language, f"{name}.self_attn.o_proj", out)
        seen = _rms(language, f"{name}.post_attention_layernorm", x)
        inner = F.silu(_linear(language, f"{name}.mlp.gate_proj", seen)) * _linear(
            language, f"{name}.mlp.up_proj", seen
        )
        x = x + _linear(language, f"{name}.mlp.down_proj", inner)
    return _linear(language, "lm_head", _rms(language, "model.norm", x))


def configs(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Return the sizes with the names of transformers' configs."""
    return {
        "vision": {
            "hidden_size": sizes.vision, "intermediate_size": sizes.vision_mlp, "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.vision_heads, "image_size": sizes.image, "patch_size": sizes.patch,
        },
        "qformer": {
            "hidden_size": sizes.qformer, "intermediate_size": sizes.qformer_mlp,
            "num_hidden_layers": sizes.qformer_layers, "num_attention_heads": sizes.qformer_heads,
        },
        "text": {
            "vocab_size": sizes.vocabulary, "hidden_size": sizes.text, "intermediate_size": sizes.text_mlp,
            "num_hidden_layers": sizes.text_layers, "num_attention_heads": sizes.text_heads,
            "num_key_value_heads": sizes.text_kv_heads,
        },
    }  # fmt: skip
