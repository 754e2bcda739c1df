"""Tiny models with random weights, built from transformers' configs without downloads.

By default the vision tower has the depth and width of the text decoder, so that these do not identify the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPVisionConfig,
    CLIPVisionModel,
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
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    OPTConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
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
class Geometry:
    """Depth and width of a tiny model's text decoder and vision tower. Widths have to be multiples of 16."""

    text_layers: int = 2
    text_size: int = 32
    vision_layers: int = 2
    vision_size: int = 32
    vocabulary: int = VOCABULARY

    @property
    def image_token(self) -> int:
        """The last id; video and vision start and end tokens have the ids below it."""
        return self.vocabulary - 1

    def text(self, **others: Any) -> dict[str, Any]:
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
            **others,
        }

    def vision(self, **others: Any) -> dict[str, Any]:
        """Return the arguments that CLIP-like vision configs share: 4 patches of an image of 16 by 16 pixels."""
        return {
            "hidden_size": self.vision_size,
            "intermediate_size": 48,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            **others,
        }


SAME_SHAPE = Geometry()


def tiny_llama(shape: Geometry = SAME_SHAPE) -> LlamaForCausalLM:
    """Build a language model without a vision tower."""
    return LlamaForCausalLM(LlamaConfig(**shape.text()))


def tiny_gpt2(shape: Geometry = SAME_SHAPE) -> GPT2LMHeadModel:
    """Build a language model whose projections are transformers' `Conv1D`."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary,
            n_embd=shape.text_size,
            n_layer=shape.text_layers,
            n_head=2,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def tiny_bart(shape: Geometry = SAME_SHAPE) -> BartForConditionalGeneration:
    """Build an encoder-decoder language model whose encoder and decoder have the same names."""
    ffn: dict[str, Any] = {
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=shape.vocabulary,
            d_model=shape.text_size,
            encoder_layers=shape.vision_layers,
            decoder_layers=shape.text_layers,
            max_position_embeddings=64,
            **ffn,
        )
    )


def tiny_clip_vision(shape: Geometry = SAME_SHAPE) -> CLIPVisionModel:
    """Build a vision tower without a text model."""
    return CLIPVisionModel(CLIPVisionConfig(**shape.vision()))


def tiny_llava(shape: Geometry = SAME_SHAPE) -> LlavaForConditionalGeneration:
    """Build LLaVA from CLIP and Llama."""
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**shape.vision()),
            text_config=LlamaConfig(**shape.text()),
            image_token_index=shape.image_token,
            vision_feature_layer=-1,
        )
    )


def tiny_llava_onevision(shape: Geometry = SAME_SHAPE) -> LlavaOnevisionForConditionalGeneration:
    """Build LLaVA-OneVision from SigLIP and Qwen2; pictures are split into tiles of the tower's size."""
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**shape.vision(), vision_use_head=False),
            text_config=Qwen2Config(**shape.text()),
            image_token_index=shape.image_token,
            video_token_index=shape.image_token - 1,
            vision_feature_layer=-1,
            image_grid_pinpoints=[[16, 16], [16, 32], [32, 16]],
        )
    )


def tiny_minigpt4(shape: Geometry = SAME_SHAPE) -> MiniGPT4ForConditionalGeneration:
    """Build MiniGPT-4, which joins four patches to one image token."""
    return _minigpt4(shape, use_qformer=False)


def tiny_minigpt4_qformer(shape: Geometry = SAME_SHAPE) -> MiniGPT4ForConditionalGeneration:
    """Build the older MiniGPT-4, with a Q-Former."""
    return _minigpt4(shape, use_qformer=True)


def _minigpt4(shape: Geometry, use_qformer: bool) -> MiniGPT4ForConditionalGeneration:
    return MiniGPT4ForConditionalGeneration(
        MiniGPT4Config(
            vision_config=shape.vision(initializer_range=0.3),
            text_config=LlamaConfig(**shape.text()),
            qformer_config={**_qformer(shape), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            use_qformer=use_qformer,
            num_query_tokens=4,
            image_token_index=shape.image_token,
        )
    )


def tiny_qwen2_vl(shape: Geometry = SAME_SHAPE) -> Qwen2VLForConditionalGeneration:
    """Build Qwen2-VL, whose vision tower has `embed_dim` instead of `hidden_size`."""
    vision = {"depth": shape.vision_layers, "embed_dim": shape.vision_size, "hidden_size": shape.text_size}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(vision_config={**vision, "num_heads": 2}, text_config=_qwen_text(shape), **_qwen_tokens(shape))
    )


def tiny_qwen2_5_vl(shape: Geometry = SAME_SHAPE) -> Qwen2_5_VLForConditionalGeneration:
    """Build Qwen2.5-VL, whose vision tower has an `mlp.down_proj`, too."""
    vision = {"depth": shape.vision_layers, "hidden_size": shape.vision_size, "out_hidden_size": shape.text_size}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config={**vision, "intermediate_size": 48, "num_heads": 2, "fullatt_block_indexes": [0]},
            text_config=_qwen_text(shape),
            **_qwen_tokens(shape),
        )
    )


def tiny_qwen3_vl_moe(
    shape: Geometry = SAME_SHAPE, dense_layers: tuple[int, ...] = ()
) -> Qwen3VLMoeForConditionalGeneration:
    """Build Qwen3-VL-MoE, with a mixture of experts in every layer but `dense_layers`."""
    vision = {"depth": shape.vision_layers, "hidden_size": shape.vision_size, "out_hidden_size": shape.text_size}
    text = _qwen_text(shape) | {
        "head_dim": 16,
        "moe_intermediate_size": 16,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mlp_only_layers": list(dense_layers),
    }
    return Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(
            vision_config={
                **vision,
                "intermediate_size": 48,
                "num_heads": 2,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            text_config=text,
            **_qwen_tokens(shape),
        )
    )


def tiny_smolvlm(shape: Geometry = SAME_SHAPE) -> SmolVLMForConditionalGeneration:
    """Build SmolVLM."""
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=shape.vision(),
            text_config=LlamaConfig(**shape.text()).to_dict(),
            image_token_id=shape.image_token,
            scale_factor=2,
        )
    )


def tiny_idefics(shape: Geometry = SAME_SHAPE) -> IdeficsForVisionText2Text:
    """Build the first Idefics, with as many gated cross-attention layers as decoder layers."""
    vision = {"embed_dim": shape.vision_size, "image_size": 16, "patch_size": 8, "intermediate_size": 48}
    return IdeficsForVisionText2Text(
        IdeficsConfig(
            **shape.text(),
            vision_config={**vision, "num_hidden_layers": shape.vision_layers, "num_attention_heads": 2},
            perceiver_config={"use_resampler": False},
            cross_layer_interval=1,
        )
    )


def tiny_idefics3(shape: Geometry = SAME_SHAPE) -> Idefics3ForConditionalGeneration:
    """Build Idefics3."""
    return Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=shape.vision(),
            text_config=LlamaConfig(**shape.text()).to_dict(),
            image_token_id=shape.image_token,
            scale_factor=2,
        )
    )


def tiny_instructblip(shape: Geometry = SAME_SHAPE) -> InstructBlipForConditionalGeneration:
    """Build InstructBLIP with a Llama, as in its Vicuna versions."""
    return InstructBlipForConditionalGeneration(
        InstructBlipConfig(
            vision_config=shape.vision(),
            qformer_config=_qformer(shape),
            text_config=LlamaConfig(**shape.text()),
            num_query_tokens=4,
            image_token_index=shape.image_token,
        )
    )


def tiny_blip2_opt(shape: Geometry = SAME_SHAPE) -> Blip2ForConditionalGeneration:
    """Build BLIP-2 with an OPT, whose projection is a plain `fc2` like that of many vision towers."""
    text = OPTConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.text_size,
        word_embed_proj_dim=shape.text_size,
        ffn_dim=48,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return _blip2(shape, text)


def tiny_blip2_t5(shape: Geometry = SAME_SHAPE) -> Blip2ForConditionalGeneration:
    """Build BLIP-2 with a T5: an encoder-decoder inside a vision-language model."""
    text = T5Config(
        vocab_size=shape.vocabulary,
        d_model=shape.text_size,
        d_kv=8,
        d_ff=48,
        num_layers=shape.vision_layers,
        num_decoder_layers=shape.text_layers,
        num_heads=2,
    )
    return _blip2(shape, text)


def tiny_gemma3(shape: Geometry = SAME_SHAPE) -> Gemma3ForConditionalGeneration:
    """Build Gemma 3 with its SigLIP tower."""
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config=shape.vision(),
            text_config=shape.text(head_dim=16),
            mm_tokens_per_image=4,
            image_token_index=shape.image_token,
            boi_token_index=shape.image_token - 1,
            eoi_token_index=shape.image_token - 2,
        )
    )


@dataclass(frozen=True)
class TinyFamily:
    """Factory of a tiny model of one family, and the paths of its parts."""

    build: Callable[[Geometry], PreTrainedModel]
    layers: str
    projection: str
    vision_layers: str


TINY_FAMILIES = {
    "llava": TinyFamily(
        tiny_llava, "model.language_model.layers", "mlp.down_proj", "model.vision_tower.encoder.layers"
    ),
    "llava_onevision": TinyFamily(
        tiny_llava_onevision, "model.language_model.layers", "mlp.down_proj", "model.vision_tower.encoder.layers"
    ),
    "minigpt4": TinyFamily(
        tiny_minigpt4, "model.language_model.layers", "mlp.down_proj", "model.vision_tower.encoder.layers"
    ),
    "minigpt4_qformer": TinyFamily(
        tiny_minigpt4_qformer, "model.language_model.layers", "mlp.down_proj", "model.vision_tower.encoder.layers"
    ),
    "qwen2_vl": TinyFamily(tiny_qwen2_vl, "model.language_model.layers", "mlp.down_proj", "model.visual.blocks"),
    "qwen2_5_vl": TinyFamily(tiny_qwen2_5_vl, "model.language_model.layers", "mlp.down_proj", "model.visual.blocks"),
    "smolvlm": TinyFamily(
        tiny_smolvlm, "model.text_model.layers", "mlp.down_proj", "model.vision_model.encoder.layers"
    ),
    "idefics": TinyFamily(tiny_idefics, "model.layers", "mlp.down_proj", "model.vision_model.encoder.layers"),
    "idefics3": TinyFamily(
        tiny_idefics3, "model.text_model.layers", "mlp.down_proj", "model.vision_model.encoder.layers"
    ),
    "instructblip": TinyFamily(
        tiny_instructblip, "language_model.model.layers", "mlp.down_proj", "vision_model.encoder.layers"
    ),
    "blip2_opt": TinyFamily(
        tiny_blip2_opt, "language_model.model.decoder.layers", "fc2", "vision_model.encoder.layers"
    ),
    "blip2_t5": TinyFamily(
        tiny_blip2_t5, "language_model.decoder.block", "layer.2.DenseReluDense.wo", "vision_model.encoder.layers"
    ),
    "gemma3": TinyFamily(
        tiny_gemma3, "model.language_model.layers", "mlp.down_proj", "model.vision_tower.encoder.layers"
    ),
}


def _qwen_tokens(shape: Geometry) -> dict[str, Any]:
    return {
        "image_token_id": shape.image_token,
        "video_token_id": shape.image_token - 1,
        "vision_start_token_id": shape.image_token - 2,
        "vision_end_token_id": shape.image_token - 3,
    }


def _qwen_text(shape: Geometry) -> dict[str, Any]:
    half = shape.text_size // 4
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    return shape.text(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections})


def _qformer(shape: Geometry) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.text_size,
        "intermediate_size": 48,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": 2,
        "encoder_hidden_size": shape.vision_size,
    }


def _blip2(shape: Geometry, text: OPTConfig | T5Config) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=shape.vision(),
            qformer_config=_qformer(shape),
            text_config=text,
            num_query_tokens=4,
            image_token_index=shape.image_token,
        )
    )
