"""MiniGPT-4's chat templates and processor, and the `###` turn separator at which its Q-Former variant stops.

In the LLaMA-2 template answers end with the end-of-sequence token. In the Vicuna template of the Q-Former variant the next
turn starts with `###`, whose token ids depend on the text before it: `TurnSeparatorCriteria` stops generation there, and
`cut_at_separator` removes it from the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.processing_utils import ProcessorMixin

SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
IMAGE_TOKEN = "<ImageHere>"

_FIND_PICTURES = (
    "{% set shown = namespace(pictures=false) %}"
    "{% for message in messages %}{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set shown.pictures = true %}{% endif %}{% endfor %}"
    "{% elif '" + IMAGE_TOKEN + "' in message['content'] %}{% set shown.pictures = true %}{% endif %}{% endfor %}"
)
_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<Img>" + IMAGE_TOKEN + "</Img> ' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)


def _template(start: str, user: str, answer: str, end: str) -> str:
    """Build a chat template: the given system text, or the model's if there is a picture, then the turns.

    Args:
        start: prefix of the system text.
        user: prefix of a question.
        answer: prefix of an answer.
        end: suffix of an answer.
    """
    return (
        _FIND_PICTURES + "{% if messages[0]['role'] == 'system' %}" + start
        + "{% elif shown.pictures %}" + start + SYSTEM + "{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        + user + _CONTENT + answer + "{% elif message['role'] == 'assistant' %}" + _CONTENT + end
        + "{% else %}" + _CONTENT + "{% endif %}{% endfor %}"
    )  # fmt: skip


LLAMA2_TEMPLATE = _template("{{ bos_token }}", "{{ bos_token + '[INST] ' }}", "{{ ' [/INST] ' }}", "{{ eos_token }}")
"""Prompt of the LLaMA-2 variant: `<s>{system text}<s>[INST] <Img>{image tokens}</Img> {question} [/INST] `."""
VICUNA_TEMPLATE = "{{ bos_token }}" + _template("", "{{ '###Human: ' }}", "{{ '###Assistant: ' }}", "")
"""Prompt of the Q-Former variant: `<s>{system text}###Human: <Img>{image tokens}</Img> {question}###Assistant: `."""


class MiniGPT4Processor(ProcessorMixin):
    """Processor for MiniGPT-4: resizes and normalizes pictures, and repeats the image token in the text for each picture.

    Sets the tokenizer to pad on the left, because `generate` continues after the last column.

    Args:
        image_processor: BLIP's image processor, at the tower's size.
        tokenizer: the language model's tokenizer with the image token added.
        image_seq_length: image tokens per picture.
        chat_template: `LLAMA2_TEMPLATE` or `VICUNA_TEMPLATE`.
        image_token: placeholder of a picture in a text.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 64,
        chat_template: str | None = LLAMA2_TEMPLATE,
        image_token: str = IMAGE_TOKEN,
        **kwargs: Any,
    ) -> None:
        self.image_seq_length = image_seq_length
        self.image_token = image_token
        tokenizer.padding_side = "left"
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def __call__(self, images: Any = None, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Process as any processor does, but add no second begin-of-sequence token to prompts of the chat template."""
        is_set = "add_special_tokens" in {**kwargs, **kwargs.get("text_kwargs", {})}
        texts = [text] if isinstance(text, str) else list(text or ())
        bos = self.tokenizer.bos_token
        if not is_set and bos and texts and all(isinstance(prompt, str) and prompt.startswith(bos) for prompt in texts):
            kwargs["add_special_tokens"] = False
        return super().__call__(images, text, *args, **kwargs)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """Return the image tokens of one picture."""
        return self.image_token * self.image_seq_length


TURN_SEPARATOR = "###"


def separator_token_ids(tokenizer: Any) -> list[list[int]]:
    """Return the distinct token ids of the turn separator after a word, after a space and at the start of a line."""
    variants = []
    for prefix in ("a", "a ", "a\n"):
        ids = tokenizer(prefix + TURN_SEPARATOR, add_special_tokens=False)["input_ids"]
        start = next(start for start in reversed(range(len(ids))) if TURN_SEPARATOR in tokenizer.decode(ids[start:]))
        variants.append(ids[start:])
    return [list(ids) for ids in dict.fromkeys(map(tuple, variants))]


class TurnSeparatorCriteria(StoppingCriteria):
    """Stop generation when the last tokens are a turn separator.

    Args:
        separators: the separator's token ids in each of its variants, see `separator_token_ids`.
    """

    def __init__(self, separators: Sequence[Sequence[int]]) -> None:
        self.separators = separators

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for ids in self.separators:
            if input_ids.shape[1] >= len(ids):
                done |= (input_ids[:, -len(ids) :] == input_ids.new_tensor(ids)).all(1)
        return done


def cut_at_separator(tokens: Tensor, prompt_length: int, separators: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Replace each answer from its first turn separator on by padding.

    Args:
        tokens: (B, T), output of `generate`.
        prompt_length: number of columns that belong to the prompts, which stay unchanged.
        separators: the separator's token ids in each of its variants.
        pad: id of the padding token.
    """
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    cuts = torch.full((len(tokens), 1), tokens.shape[1], device=tokens.device)
    for ids in separators:
        if tokens.shape[1] - prompt_length >= len(ids):
            hits = (tokens[:, prompt_length:].unfold(1, len(ids), 1) == tokens.new_tensor(ids)).all(2)
            first = hits.long().argmax(1, keepdim=True) + prompt_length
            cuts = torch.where(hits.any(1, keepdim=True), cuts.minimum(first), cuts)
    return tokens.masked_fill(columns >= cuts, pad)
