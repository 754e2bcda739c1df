"""MiniGPT-4 in both variants, assembled from transformers' modules.

picture -> EVA-ViT-g with its final layer norm -> patch features x, without the class token
LLaMA-2 variant:   image token i = W [x_4i ; x_4i+1 ; x_4i+2 ; x_4i+3] + b
Q-Former variant:  image token i = W q_i + b, with q the Q-Former's outputs for its query tokens
text embeddings with the image tokens at the positions of `image_token_index` -> language model
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    Blip2QFormerModel,
    Blip2VisionModel,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.utils.generic import can_return_tuple

from lightning_neuralgate.models.minigpt4.configuration import MiniGPT4Config
from lightning_neuralgate.models.minigpt4.processing import TurnSeparatorCriteria, cut_at_separator

ImageFeatures = dict[str, BaseModelOutputWithPooling]
"""Output of `get_image_features` under the key `image`, transformers' format for precomputed encoder outputs."""

_NOT_QUANTIZED = ("multi_modal_projector", "model.multi_modal_projector", "qformer", "model.qformer")
"""Name prefixes, in both classes, of the modules that make image tokens; quantizers match modules or parameters with them."""


@dataclass
class MiniGPT4ModelOutput(BaseModelOutputWithPast):
    """Outputs of the language model without its head, and its image tokens, (pictures, tokens, d)."""

    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class MiniGPT4CausalLMOutput(ModelOutput):
    """Outputs with `logits` (B, T, vocabulary), and `loss` if labels were given."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None


class MiniGPT4PreTrainedModel(PreTrainedModel):
    """Base class: configuration, weight initialization and supported features."""

    config_class = MiniGPT4Config
    config: MiniGPT4Config
    base_model_prefix = "model"
    input_modalities: Any = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: Any = [  # noqa: RUF012
        "Blip2EncoderLayer",
        "Blip2VisionEmbeddings",
        "Blip2QFormerLayer",
        "LlamaDecoderLayer",
    ]
    _skip_keys_device_placement: Any = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True

    def post_init(self) -> None:
        super().post_init()
        if getattr(self.config, "quantization_config", None) is not None:
            # quantizers skip modules that stay in float32; without a quantizer all modules have the requested dtype
            self._keep_in_fp32_modules = {*(self._keep_in_fp32_modules or ()), *_NOT_QUANTIZED}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MiniGPT4Model) and module.query_tokens is not None:
            init.normal_(module.query_tokens, mean=0.0, std=self.config.initializer_range)


class MiniGPT4Model(MiniGPT4PreTrainedModel):
    """Vision tower, projection to image tokens, and language model without its head."""

    def __init__(self, config: MiniGPT4Config) -> None:
        super().__init__(config)
        vision: Any = config.vision_config
        text: Any = config.text_config
        self.vision_tower = Blip2VisionModel._from_config(vision)
        if config.final_norm_eps is not None:
            self.vision_tower.post_layernorm.eps = config.final_norm_eps
        self.qformer: Any = None
        self.query_tokens: nn.Parameter | None = None
        width = config.patches_per_token * vision.hidden_size
        if config.use_qformer:
            qformer: Any = config.qformer_config
            width = qformer.hidden_size
            self.qformer = Blip2QFormerModel._from_config(qformer)
            self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.multi_modal_projector = nn.Linear(width, text.hidden_size)
        self.language_model = AutoModel.from_config(text)
        self.post_init()

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Compute the image tokens of pictures.

        Args:
            pixel_values: (pictures, 3, height, width), from the processor.
            kwargs: arguments of the tower.

        Returns:
            The tower's output, with the image tokens as `pooler_output`, (pictures, tokens, d).

        Raises:
            ValueError: the pictures do not have the tower's size.
        """
        vision: Any = self.config.vision_config
        side = vision.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, side, side):
            raise ValueError(
                f"the vision tower needs pictures of 3 x {side} x {side}, pixel_values are {tuple(pixel_values.shape)}; "
                f"set the image processor's size to {{'height': {side}, 'width': {side}}}"
            )
        outputs = self.vision_tower(pixel_values.to(self.vision_tower.dtype), return_dict=True, **kwargs)
        features = outputs.last_hidden_state
        if self.query_tokens is not None:
            dtype = self.qformer.dtype
            queries = self.query_tokens.expand(len(features), -1, -1).to(dtype)
            # the Q-Former attends to the class token, too
            grouped = self.qformer(query_embeds=queries, encoder_hidden_states=features.to(dtype), return_dict=True)[0]
        else:
            grouped = features[:, 1:].reshape(len(features), self.config.image_seq_length, -1)
        outputs.pooler_output = self.multi_modal_projector(grouped.to(self.multi_modal_projector.weight.dtype))
        return outputs

    def _insert_image_tokens(self, input_ids: Tensor | None, embeds: Tensor, tokens: Tensor) -> Tensor:
        """Return the text embeddings with the image tokens at their positions."""
        if input_ids is None:
            image_embed = self.get_input_embeddings()(
                torch.tensor(self.config.image_token_index, dtype=torch.long, device=embeds.device)
            )
            mask = (embeds == image_embed).all(-1)
        else:
            mask = input_ids == self.config.image_token_index
        if mask.sum() * embeds.shape[-1] != tokens.numel():
            raise ValueError(
                f"the text has {int(mask.sum())} positions for image tokens, but {len(tokens)} pictures have "
                f"{tokens.shape[0] * tokens.shape[1]}; process both with the same MiniGPT4Processor"
            )
        mask = mask.unsqueeze(-1).to(embeds.device)
        return embeds.masked_scatter(mask, tokens.to(embeds.device, embeds.dtype))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: ImageFeatures | None = None,
        **kwargs: Any,
    ) -> MiniGPT4ModelOutput:
        """Run text and pictures through the model without its head; arguments as in `MiniGPT4ForConditionalGeneration`.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` are given, pictures are given twice, or the
                numbers of image tokens in text and pictures differ.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        features = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None and features is not None:
            raise ValueError("give either pixel_values or mm_encoder_outputs")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        tokens: Any = None
        if pixel_values is not None:
            features = self.get_image_features(pixel_values, return_dict=True)
        if features is not None:
            tokens = features.pooler_output
            inputs_embeds = self._insert_image_tokens(input_ids, inputs_embeds, tokens)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return MiniGPT4ModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=tokens,
        )


class MiniGPT4ForConditionalGeneration(MiniGPT4PreTrainedModel, GenerationMixin):
    """MiniGPT-4 with its language model head.

    Example:
        >>> from transformers import Blip2VisionConfig, LlamaConfig
        >>> vision = Blip2VisionConfig(
        ...     hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
        ... )
        >>> text = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
        ... )
        >>> config = MiniGPT4Config(vision_config=vision, text_config=text, image_token_index=31)
        >>> model = MiniGPT4ForConditionalGeneration(config)
        >>> ids = torch.tensor([[1, 31, 5]])
        >>> model(input_ids=ids, pixel_values=torch.zeros(1, 3, 16, 16)).logits.shape
        torch.Size([1, 3, 32])
    """

    _tied_weights_keys: Any = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MiniGPT4Config) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.model = MiniGPT4Model(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Compute the image tokens of pictures, see `MiniGPT4Model.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def generate(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call transformers' `generate`, and end answers at the turn separator (`config.turn_marks`) if there is one.

        Raises:
            ValueError: there is a separator, but neither a padding nor an end-of-sequence token to replace it with.
        """
        separators = self.config.turn_marks
        generate: Any = GenerationMixin.generate
        if not separators:
            return generate(self, inputs, generation_config, *args, **kwargs)
        pad = self._pad_token_id(generation_config, kwargs)
        kwargs["stopping_criteria"] = [*(kwargs.get("stopping_criteria") or ()), TurnSeparatorCriteria(separators)]
        outputs = generate(self, inputs, generation_config, *args, **kwargs)
        prompts = inputs if inputs is not None else kwargs.get("input_ids")
        prompt_length = 0 if prompts is None else prompts.shape[1]
        if isinstance(outputs, Tensor):
            return cut_at_separator(outputs, prompt_length, separators, pad)
        outputs.sequences = cut_at_separator(outputs.sequences, prompt_length, separators, pad)
        return outputs

    def _pad_token_id(self, generation_config: GenerationConfig | None, options: Mapping[str, Any]) -> int:
        """Return the padding token of `generate` from its options or the configs, else the first end-of-sequence token."""
        configs = [vars(config) for config in (generation_config, self.generation_config) if config is not None]
        for name in ("pad_token_id", "eos_token_id"):
            for source in (options, *configs):
                if (value := source.get(name)) is not None:
                    return int(torch.as_tensor(value).flatten()[0])
        raise ValueError("answers that end at a turn separator need padding: set generation_config.pad_token_id")

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: ImageFeatures | None = None,
        **kwargs: Any,
    ) -> MiniGPT4CausalLMOutput:
        """Compute next-token logits, and the mean loss over the labelled positions.

        Args:
            input_ids: (B, T), with `image_token_index` at each image token.
            pixel_values: (pictures, 3, height, width), in the order of their image tokens in the batch.
            attention_mask: (B, T), 0 on padding, on either side.
            position_ids: (B, T); computed by the language model when left out.
            past_key_values: cache of earlier positions.
            inputs_embeds: (B, T, d), instead of `input_ids`.
            labels: (B, T), -100 at positions without a loss.
            logits_to_keep: number of last positions to compute logits for, or their indices; 0 for all.
            mm_encoder_outputs: `{"image": get_image_features(pixel_values)}` instead of `pixel_values`, with which `generate`
                encodes each picture once and expands the features for beams and samples.
            kwargs: arguments of the language model.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, positions])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return MiniGPT4CausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )
