"""Configuration of MiniGPT-4."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class MiniGPT4Config(PreTrainedConfig):
    """Configuration of a vision tower, a projection to image tokens, and a language model.

    The defaults are the LLaMA-2 variant: EVA-ViT-g/14 at 224 px, whose 256 patches become 64 image tokens. `use_qformer`
    selects the older variant, in which BLIP-2's Q-Former makes 32 image tokens.

    Args:
        vision_config: the vision tower, BLIP-2's (the same architecture as EVA-ViT-g with its final layer norm).
        text_config: the language model.
        qformer_config: the Q-Former, if there is one.
        use_qformer: make image tokens with a Q-Former instead of from groups of patches.
        num_query_tokens: image tokens of the Q-Former.
        patches_per_token: patches, consecutive in the sequence, per image token without a Q-Former.
        final_norm_eps: epsilon of the tower's final norm; None for that of its other norms. The original has 1e-5 there and
            1e-6 elsewhere.
        image_token_index: id of the image token.
        turn_marks: token ids of the turn separator that ends an answer, one list per variant
            (`processing.separator_token_ids`); `###` in the Q-Former variant.
        tie_word_embeddings: whether input and output embeddings of the language model are tied.

    Raises:
        ValueError: the number of patches is not a multiple of `patches_per_token`.

    Example:
        >>> MiniGPT4Config().image_seq_length
        64
        >>> MiniGPT4Config(use_qformer=True).image_seq_length
        32
    """

    model_type = "minigpt4"
    attribute_map: ClassVar[dict[str, str]] = {"image_token_id": "image_token_index"}
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "vision_config": SubConfigSpec(config_class=Blip2VisionConfig),
        "qformer_config": SubConfigSpec(config_class=Blip2QFormerConfig, optional=True),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    qformer_config: dict[str, Any] | PreTrainedConfig | None = None
    use_qformer: bool = False
    num_query_tokens: int = 32
    patches_per_token: int = 4
    final_norm_eps: float | None = None
    image_token_index: int = 32000
    turn_marks: list[list[int]] | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.use_qformer and self.qformer_config is None:
            self.qformer_config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        super().__post_init__(**kwargs)
        text: Any = self.text_config
        self.tie_word_embeddings = bool(self.tie_word_embeddings or text.tie_word_embeddings)
        if self.use_qformer:
            qformer: Any = self.qformer_config
            vision: Any = self.vision_config
            qformer.encoder_hidden_size = vision.hidden_size
        elif self.num_patches % self.patches_per_token:
            raise ValueError(
                f"{self.num_patches} patches cannot be divided into groups of {self.patches_per_token}; "
                "choose another image_size, patch_size or patches_per_token"
            )

    @property
    def num_patches(self) -> int:
        """Patches per picture."""
        vision: Any = self.vision_config
        return int((vision.image_size // vision.patch_size) ** 2)

    @property
    def image_seq_length(self) -> int:
        """Image tokens per picture."""
        return self.num_query_tokens if self.use_qformer else self.num_patches // self.patches_per_token
