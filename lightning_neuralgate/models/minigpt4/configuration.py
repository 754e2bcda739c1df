"""What a MiniGPT-4 is made of."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class MiniGPT4Config(PreTrainedConfig):
    """A vision tower, what makes its features into image tokens, and a language model.

    The defaults are the LLaMA-2 variant: EVA-ViT-g/14 at 224 px, whose 256 patches become 64 image tokens. With
    `use_qformer` it is the older one, in which BLIP-2's Q-Former makes 32 image tokens of them.

    Args:
        vision_config: the tower, BLIP-2's (the same architecture as EVA-ViT-g with its final layer norm).
        text_config: the language model.
        qformer_config: the Q-Former, where there is one.
        use_qformer: image tokens from a Q-Former instead of from runs of patches.
        num_query_tokens: image tokens that the Q-Former makes.
        patches_per_token: patches, neighbours in sequence order, that become one image token without a Q-Former.
        final_norm_eps: of the tower's final norm; null for that of its other norms. The original's is 1e-5, beside 1e-6.
        image_token_index: id of the token that image tokens take the place of.
        turn_marks: token ids that end an answer, as a list for each way to write them (`turn_mark.spellings`); the Q-Former
            variant's `###`.
        tie_word_embeddings: whether the language model's two embeddings are one tensor.

    Raises:
        ValueError: the patches cannot be divided into runs.

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
                f"{self.num_patches} patches cannot be divided into runs of {self.patches_per_token}; "
                "choose another image_size, patch_size or patches_per_token"
            )

    @property
    def num_patches(self) -> int:
        """Patches of a picture."""
        vision: Any = self.vision_config
        return int((vision.image_size // vision.patch_size) ** 2)

    @property
    def image_seq_length(self) -> int:
        """Image tokens of a picture."""
        return self.num_query_tokens if self.use_qformer else self.num_patches // self.patches_per_token
