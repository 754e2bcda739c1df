"""The MiniGPT-4 network, both variants, out of transformers' own parts.

picture -> EVA-ViT-g with its final layer norm -> patches x, without the class token
LLaMA-2 variant:   image token i = W [x_4i ; x_4i+1 ; x_4i+2 ; x_4i+3] + b
Q-Former variant:  image token i = W q_i + b, with q the Q-Former's outputs for its query tokens
text with the image tokens in the places of `image_token_index` -> language model
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
from lightning_neuralgate.models.minigpt4.processing import EndsInMark, cut_at_mark

ImageFeatures = dict[str, BaseModelOutputWithPooling]
"""What `get_image_features` returns, under `image`: transformers' form for what was looked at before."""

_NOT_QUANTIZED = ("multi_modal_projector", "model.multi_modal_projector", "qformer", "model.qformer")
"""What makes image tokens, by how names in both classes begin: quantizers ask about modules, or about their parameters."""


@dataclass
class MiniGPT4ModelOutput(BaseModelOutputWithPast):
    """Outputs of the language model below its head, with the image tokens as they went in (pictures, tokens, d)."""

    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class MiniGPT4CausalLMOutput(ModelOutput):
    """Outputs of the whole model; `logits` (B, T, vocabulary), `loss` where labels were given."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None


class MiniGPT4PreTrainedModel(PreTrainedModel):
    """What both classes have in common: configuration, initial weights, and what the parts support."""

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
            # a quantizer leaves out what is kept in float32; without one nothing is, and all is of the type asked for
            self._keep_in_fp32_modules = {*(self._keep_in_fp32_modules or ()), *_NOT_QUANTIZED}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MiniGPT4Model) and module.query_tokens is not None:
            init.normal_(module.query_tokens, mean=0.0, std=self.config.initializer_range)


class MiniGPT4Model(MiniGPT4PreTrainedModel):
    """Tower, image tokens and language model, without the language model's head."""

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

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The image tokens of pictures.

        Args:
            pixel_values: (pictures, 3, height, width), as the processor makes them.
            kwargs: for the tower.

        Returns:
            The tower's output; its `pooler_output` is the image tokens, (pictures, tokens, d).

        Raises:
            ValueError: pictures of another size than the tower's.
        """
        vision: Any = self.config.vision_config
        side = vision.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, side, side):
            raise ValueError(
                f"the vision tower takes pictures of 3 x {side} x {side}, pixel_values are {tuple(pixel_values.shape)}; "
                f"set the image processor's size to {{'height': {side}, 'width': {side}}}"
            )
        outputs = self.vision_tower(pixel_values.to(self.vision_tower.dtype), return_dict=True, **kwargs)
        features = outputs.last_hidden_state
        if self.query_tokens is not None:
            kind = self.qformer.dtype
            queries = self.query_tokens.expand(len(features), -1, -1).to(kind)
            # the Q-Former sees the class token, too
            gathered = self.qformer(query_embeds=queries, encoder_hidden_states=features.to(kind), return_dict=True)[0]
        else:
            gathered = features[:, 1:].reshape(len(features), self.config.image_seq_length, -1)
        outputs.pooler_output = self.multi_modal_projector(gathered.to(self.multi_modal_projector.weight.dtype))
        return outputs

    def _with_pictures(self, input_ids: Tensor | None, embeds: Tensor, tokens: Tensor) -> Tensor:
        """Text embeddings with the image tokens in the places that were left for them."""
        if input_ids is None:
            mark = self.get_input_embeddings()(
                torch.tensor(self.config.image_token_index, dtype=torch.long, device=embeds.device)
            )
            places = (embeds == mark).all(-1)
        else:
            places = input_ids == self.config.image_token_index
        if places.sum() * embeds.shape[-1] != tokens.numel():
            raise ValueError(
                f"the text leaves {int(places.sum())} places for image tokens, but {len(tokens)} pictures have "
                f"{tokens.shape[0] * tokens.shape[1]}; make both with one MiniGPT4Processor"
            )
        places = places.unsqueeze(-1).to(embeds.device)
        return embeds.masked_scatter(places, tokens.to(embeds.device, embeds.dtype))

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
        """Run text and pictures through all but the head.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, pictures given twice, or pictures and their
                places do not agree.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        looked = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None and looked is not None:
            raise ValueError("give either pixel_values or mm_encoder_outputs")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        tokens: Any = None
        if pixel_values is not None:
            looked = self.get_image_features(pixel_values, return_dict=True)
        if looked is not None:
            tokens = looked.pooler_output
            inputs_embeds = self._with_pictures(input_ids, inputs_embeds, tokens)
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
    """MiniGPT-4 with its head: answers questions about pictures.

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

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The image tokens of pictures; see `MiniGPT4Model.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def generate(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """transformers' `generate`; an answer also ends where one of the config's `turn_marks` begins.

        Raises:
            ValueError: there are such marks, and neither a padding token to put in their place nor one that ends a text.
        """
        marks = self.config.turn_marks
        generate: Any = GenerationMixin.generate
        if not marks:
            return generate(self, inputs, generation_config, *args, **kwargs)
        pad = self._padding(generation_config, kwargs)
        kwargs["stopping_criteria"] = [*(kwargs.get("stopping_criteria") or ()), EndsInMark(marks)]
        found = generate(self, inputs, generation_config, *args, **kwargs)
        prompts = inputs if inputs is not None else kwargs.get("input_ids")
        prompt = 0 if prompts is None else prompts.shape[1]
        if isinstance(found, Tensor):
            return cut_at_mark(found, prompt, marks, pad)
        found.sequences = cut_at_mark(found.sequences, prompt, marks, pad)
        return found

    def _padding(self, generation_config: GenerationConfig | None, options: Mapping[str, Any]) -> int:
        """The token that `generate` pads with: an option, else of the configs, else the first that ends a text."""
        told = [options, *(vars(one) for one in (generation_config, self.generation_config) if one is not None)]
        for name in ("pad_token_id", "eos_token_id"):
            for one in told:
                if (found := one.get(name)) is not None:
                    return int(torch.as_tensor(found).flatten()[0])
        raise ValueError("answers that end at a turn mark are padded: set generation_config.pad_token_id")

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
        """Logits of the next token at each position, and the mean loss of the labelled ones.

        Args:
            input_ids: (B, T), with `image_token_index` where an image token belongs.
            pixel_values: (pictures, 3, height, width), in the order in which the batch's rows name them.
            attention_mask: (B, T), 0 on padding, which may stand on either side.
            position_ids: (B, T); counted by the language model when left out.
            past_key_values: what came before.
            inputs_embeds: (B, T, d), in the place of `input_ids`.
            labels: (B, T), -100 where no loss is taken.
            logits_to_keep: only so many last positions get logits; 0: all.
            mm_encoder_outputs: `{"image": get_image_features(pixel_values)}` in the place of `pixel_values`: how `generate`
                looks at each picture once, and gives each copy of a row that row's pictures.
            kwargs: for the language model.
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
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
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
