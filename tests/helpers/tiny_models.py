"""Tiny models with random weights, built from transformers' configs without downloads.

By default the vision tower has the depth and width of the text decoder, so that these do not identify the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    OPTConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PixtralVisionConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    T5Config,
)

from lightning_neuralgate.models.minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration

VOCABULARY = 64


@dataclass(frozen=True)
class TinySizes:
    """Depth and width of a tiny model's text decoder and vision tower. Widths have to be multiples of 16."""

    text_layers: int = 2
    text_size: int = 32
    vision_layers: int = 2
    vision_size: int = 32
    vocabulary: int = VOCABULARY
    image_id: int | None = None

    @property
    def image_token(self) -> int:
        """By default the last id; video and vision start and end tokens have the ids below it."""
        return self.vocabulary - 1 if self.image_id is None else self.image_id

    def text(self, **overrides: Any) -> dict[str, Any]:
        """Return the arguments that Llama-like text configs share."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.text_size,
            "intermediate_size": 48,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **overrides,
        }

    def vision(self, **overrides: Any) -> dict[str, Any]:
        """Return the arguments that CLIP-like vision configs share: 4 patches of an image of 16 by 16 pixels."""
        return {
            "hidden_size": self.vision_size,
            "intermediate_size": 48,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            **overrides,
        }


DEFAULT_SIZES = TinySizes()


def tiny_llama(sizes: TinySizes = DEFAULT_SIZES) -> LlamaForCausalLM:
    """Build a language model without a vision tower."""
    return LlamaForCausalLM(LlamaConfig(**sizes.text()))


def tiny_gpt2(sizes: TinySizes = DEFAULT_SIZES) -> GPT2LMHeadModel:
    """Build a language model whose projections are transformers' `Conv1D`."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=sizes.vocabulary,
            n_embd=sizes.text_size,
            n_layer=sizes.text_layers,
            n_head=2,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def tiny_bart(sizes: TinySizes = DEFAULT_SIZES) -> BartForConditionalGeneration:
    """Build an encoder-decoder language model whose encoder and decoder have the same names."""
    ffn: dict[str, Any] = {
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=sizes.vocabulary,
            d_model=sizes.text_size,
            encoder_layers=sizes.vision_layers,
            decoder_layers=sizes.text_layers,
            max_position_embeddings=64,
            **ffn,
        )
    )


def tiny_clip_vision(sizes: TinySizes = DEFAULT_SIZES) -> CLIPVisionModel:
    """Build a vision tower without a text model."""
    return CLIPVisionModel(CLIPVisionConfig(**sizes.vision()))


def build_llava(sizes: TinySizes = DEFAULT_SIZES) -> LlavaForConditionalGeneration:
    """Build LLaVA from CLIP and Llama."""
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**sizes.vision()),
            text_config=LlamaConfig(**sizes.text()),
            image_token_index=sizes.image_token,
            vision_feature_layer=-1,
        )
    )


def tiny_llava_onevision(sizes: TinySizes = DEFAULT_SIZES) -> LlavaOnevisionForConditionalGeneration:
    """Build LLaVA-OneVision from SigLIP and Qwen2; pictures are split into tiles of the tower's size."""
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**sizes.vision(), vision_use_head=False),
            text_config=Qwen2Config(**sizes.text()),
            image_token_index=sizes.image_token,
            video_token_index=sizes.image_token - 1,
            vision_feature_layer=-1,
            image_grid_pinpoints=[[16, 16], [16, 32], [32, 16]],
        )
    )


def tiny_minigpt4(sizes: TinySizes = DEFAULT_SIZES, use_qformer: bool = False) -> MiniGPT4ForConditionalGeneration:
    """Build MiniGPT-4, which joins four patches to one image token, or the older one with a Q-Former."""
    return MiniGPT4ForConditionalGeneration(
        MiniGPT4Config(
            vision_config=sizes.vision(initializer_range=0.3),
            text_config=LlamaConfig(**sizes.text()),
            qformer_config={**_qformer(sizes), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            use_qformer=use_qformer,
            num_query_tokens=4,
            image_token_index=sizes.image_token,
        )
    )


def tiny_qwen2_vl(sizes: TinySizes = DEFAULT_SIZES) -> Qwen2VLForConditionalGeneration:
    """Build Qwen2-VL, whose vision tower has `embed_dim` instead of `hidden_size`."""
    vision = {"depth": sizes.vision_layers, "embed_dim": sizes.vision_size, "hidden_size": sizes.text_size}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(vision_config={**vision, "num_heads": 2}, text_config=_qwen_text(sizes), **_qwen_tokens(sizes))
    )


def tiny_qwen2_5_vl(sizes: TinySizes = DEFAULT_SIZES) -> Qwen2_5_VLForConditionalGeneration:
    """Build Qwen2.5-VL, whose vision tower has an `mlp.down_proj`, too."""
    vision = {"depth": sizes.vision_layers, "hidden_size": sizes.vision_size, "out_hidden_size": sizes.text_size}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config={**vision, "intermediate_size": 48, "num_heads": 2, "fullatt_block_indexes": [0]},
            text_config=_qwen_text(sizes),
            **_qwen_tokens(sizes),
        )
    )


def tiny_qwen3_vl(sizes: TinySizes = DEFAULT_SIZES) -> Qwen3VLForConditionalGeneration:
    """Build Qwen3-VL, which adds features of the vision tower to the output of the first decoder layer, too."""
    text = _qwen_text(sizes) | {"head_dim": sizes.text_size // 2}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(vision_config=_qwen3_vision(sizes), text_config=text, **_qwen_tokens(sizes))
    )


def tiny_qwen3_vl_moe(
    sizes: TinySizes = DEFAULT_SIZES, dense_layers: tuple[int, ...] = ()
) -> Qwen3VLMoeForConditionalGeneration:
    """Build Qwen3-VL-MoE, with a mixture of experts in every layer but `dense_layers`."""
    text = _qwen_text(sizes) | {
        "head_dim": 16,
        "moe_intermediate_size": 16,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mlp_only_layers": list(dense_layers),
    }
    return Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(vision_config=_qwen3_vision(sizes), text_config=text, **_qwen_tokens(sizes))
    )


def tiny_smolvlm(sizes: TinySizes = DEFAULT_SIZES) -> SmolVLMForConditionalGeneration:
    """Build SmolVLM."""
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**_idefics3(sizes)))


def tiny_idefics(sizes: TinySizes = DEFAULT_SIZES) -> IdeficsForVisionText2Text:
    """Build the first Idefics, with as many gated cross-attention layers as decoder layers."""
    vision = {"embed_dim": sizes.vision_size, "image_size": 16, "patch_size": 8, "intermediate_size": 48}
    return IdeficsForVisionText2Text(
        IdeficsConfig(
            **sizes.text(),
            vision_config={**vision, "num_hidden_layers": sizes.vision_layers, "num_attention_heads": 2},
            perceiver_config={"use_resampler": False},
            cross_layer_interval=1,
        )
    )


def tiny_idefics3(sizes: TinySizes = DEFAULT_SIZES) -> Idefics3ForConditionalGeneration:
    """Build Idefics3."""
    return Idefics3ForConditionalGeneration(Idefics3Config(**_idefics3(sizes)))


def tiny_instructblip(sizes: TinySizes = DEFAULT_SIZES) -> InstructBlipForConditionalGeneration:
    """Build InstructBLIP with a Llama, as in its Vicuna versions."""
    return InstructBlipForConditionalGeneration(
        InstructBlipConfig(
            vision_config=sizes.vision(),
            qformer_config=_qformer(sizes),
            text_config=LlamaConfig(**sizes.text()),
            num_query_tokens=4,
            image_token_index=sizes.image_token,
        )
    )


def tiny_blip2_opt(sizes: TinySizes = DEFAULT_SIZES) -> Blip2ForConditionalGeneration:
    """Build BLIP-2 with an OPT, whose projection is a plain `fc2` like that of many vision towers."""
    text = OPTConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.text_size,
        word_embed_proj_dim=sizes.text_size,
        ffn_dim=48,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return _blip2(sizes, text)


def tiny_blip2_t5(sizes: TinySizes = DEFAULT_SIZES) -> Blip2ForConditionalGeneration:
    """Build BLIP-2 with a T5: an encoder-decoder inside a vision-language model."""
    text = T5Config(
        vocab_size=sizes.vocabulary,
        d_model=sizes.text_size,
        d_kv=8,
        d_ff=48,
        num_layers=sizes.vision_layers,
        num_decoder_layers=sizes.text_layers,
        num_heads=2,
    )
    return _blip2(sizes, text)


def tiny_gemma3(sizes: TinySizes = DEFAULT_SIZES) -> Gemma3ForConditionalGeneration:
    """Build Gemma 3 with its SigLIP tower."""
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config=sizes.vision(),
            text_config=sizes.text(head_dim=16),
            mm_tokens_per_image=4,
            image_token_index=sizes.image_token,
            boi_token_index=sizes.image_token - 1,
            eoi_token_index=sizes.image_token - 2,
        )
    )


def tiny_paligemma2(sizes: TinySizes = DEFAULT_SIZES) -> PaliGemmaForConditionalGeneration:
    """Build PaliGemma 2 from SigLIP and Gemma 2. Its prompts attend in both directions."""
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=SiglipVisionConfig(**sizes.vision(), vision_use_head=False, projection_dim=sizes.text_size),
            text_config=Gemma2Config(**sizes.text(head_dim=16)),
            image_token_index=sizes.image_token,
            projection_dim=sizes.text_size,
        )
    )


def tiny_internvl(sizes: TinySizes = DEFAULT_SIZES) -> InternVLForConditionalGeneration:
    """Build InternVL (the version of transformers) with Qwen2; four patches become one token."""
    vision = sizes.vision(image_size=[32, 32], patch_size=[8, 8])
    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=InternVLVisionConfig(**vision),
            text_config=Qwen2Config(**sizes.text()),
            image_token_id=sizes.image_token,
            image_seq_length=4,
        )
    )


def tiny_mistral3(sizes: TinySizes = DEFAULT_SIZES) -> Mistral3ForConditionalGeneration:
    """Build Mistral 3 with its Pixtral tower, whose pictures keep their proportions."""
    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=PixtralVisionConfig(**sizes.vision(image_size=64)),
            text_config=MistralConfig(**sizes.text(head_dim=16)),
            image_token_index=sizes.image_token,
        )
    )


@dataclass(frozen=True)
class TinyFamily:
    """Factory of a tiny model of one family, and the paths of its parts."""

    build: Callable[[TinySizes], PreTrainedModel]
    layers: str = "model.language_model.layers"
    projection: str = "mlp.down_proj"
    vision_layers: str = "model.vision_tower.encoder.layers"


TINY_FAMILIES = {
    "llava": TinyFamily(build_llava),
    "llava_onevision": TinyFamily(tiny_llava_onevision),
    "minigpt4": TinyFamily(tiny_minigpt4),
    "minigpt4_qformer": TinyFamily(partial(tiny_minigpt4, use_qformer=True)),
    "qwen2_vl": TinyFamily(tiny_qwen2_vl, vision_layers="model.visual.blocks"),
    "qwen2_5_vl": TinyFamily(tiny_qwen2_5_vl, vision_layers="model.visual.blocks"),
    "smolvlm": TinyFamily(tiny_smolvlm, "model.text_model.layers", vision_layers="model.vision_model.encoder.layers"),
    "idefics": TinyFamily(tiny_idefics, "model.layers", vision_layers="model.vision_model.encoder.layers"),
    "idefics3": TinyFamily(tiny_idefics3, "model.text_model.layers", vision_layers="model.vision_model.encoder.layers"),
    "instructblip": TinyFamily(
        tiny_instructblip, "language_model.model.layers", vision_layers="vision_model.encoder.layers"
    ),
    "blip2_opt": TinyFamily(
        tiny_blip2_opt, "language_model.model.decoder.layers", "fc2", "vision_model.encoder.layers"
    ),
    "blip2_t5": TinyFamily(
        tiny_blip2_t5, "language_model.decoder.block", "layer.2.DenseReluDense.wo", "vision_model.encoder.layers"
    ),
    "gemma3": TinyFamily(tiny_gemma3),
    "qwen3_vl": TinyFamily(tiny_qwen3_vl, vision_layers="model.visual.blocks"),
    "paligemma2": TinyFamily(tiny_paligemma2),
    "internvl": TinyFamily(tiny_internvl, vision_layers="model.vision_tower.encoder.layer"),
    "mistral3": TinyFamily(tiny_mistral3, vision_layers="model.vision_tower.transformer.layers"),
}


def _qwen_tokens(sizes: TinySizes) -> dict[str, Any]:
    return {
        "image_token_id": sizes.image_token,
        "video_token_id": sizes.image_token - 1,
        "vision_start_token_id": sizes.image_token - 2,
        "vision_end_token_id": sizes.image_token - 3,
    }


def _qwen_text(sizes: TinySizes) -> dict[str, Any]:
    half_head_dim = sizes.text_size // 4
    sections = [half_head_dim - 2 * (half_head_dim // 3), half_head_dim // 3, half_head_dim // 3]
    return sizes.text(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections})


def _qwen3_vision(sizes: TinySizes) -> dict[str, Any]:
    return {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_size,
        "out_hidden_size": sizes.text_size,
        "intermediate_size": 48,
        "num_heads": 2,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }


def _idefics3(sizes: TinySizes) -> dict[str, Any]:
    text, vision = LlamaConfig(**sizes.text()).to_dict(), sizes.vision()
    return {"vision_config": vision, "text_config": text, "image_token_id": sizes.image_token, "scale_factor": 2}


def _qformer(sizes: TinySizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.text_size,
        "intermediate_size": 48,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": 2,
        "encoder_hidden_size": sizes.vision_size,
    }


def _blip2(sizes: TinySizes, text: OPTConfig | T5Config) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=sizes.vision(),
            qformer_config=_qformer(sizes),
            text_config=text,
            num_query_tokens=4,
            image_token_index=sizes.image_token,
        )
    )
