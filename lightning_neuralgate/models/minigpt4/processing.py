"""MiniGPT-4's prompts, and the processor that puts pictures into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.processing_utils import ProcessorMixin

TURN_MARK = "###"


def spellings(tokenizer: Any, mark: str = TURN_MARK) -> list[list[int]]:
    """The token ids that a mark is written with: behind a word, behind a space, and at the start of a line."""
    found = []
    for before in ("a", "a ", "a\n"):
        ids = tokenizer(before + mark, add_special_tokens=False)["input_ids"]
        begins = next(begin for begin in reversed(range(len(ids))) if mark in tokenizer.decode(ids[begin:]))
        found.append(ids[begins:])
    return [list(ids) for ids in dict.fromkeys(map(tuple, found))]


class EndsInMark(StoppingCriteria):
    """Ends an answer whose last tokens are one of a mark's spellings."""

    def __init__(self, marks: Sequence[Sequence[int]]) -> None:
        self.marks = marks

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ends = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for mark in self.marks:
            if input_ids.shape[1] >= len(mark):
                ends |= (input_ids[:, -len(mark) :] == input_ids.new_tensor(mark)).all(1)
        return ends


def cut_at_mark(tokens: Tensor, prompt: int, marks: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Answers up to their first mark, padding in the place of the rest.

    Args:
        tokens: (B, T), what `generate` made.
        prompt: how many first columns are prompts, whose marks stay.
        marks: spellings of the mark.
        pad: id of the padding token.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device)
    begins = torch.full((len(tokens), 1), tokens.shape[1], device=tokens.device)
    for mark in marks:
        if tokens.shape[1] - prompt >= len(mark):
            hits = (tokens[:, prompt:].unfold(1, len(mark), 1) == tokens.new_tensor(mark)).all(2)
            first = hits.long().argmax(1, keepdim=True) + prompt
            begins = torch.where(hits.any(1, keepdim=True), begins.minimum(first), begins)
    return tokens.masked_fill(places >= begins, pad)


SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
IMAGE_TOKEN = "<ImageHere>"

_PICTURES = (
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


def _template(begin: str, user: str, answer: str, end: str) -> str:
    """A chat template: a system text of one's own, or the model's where there is a picture, then the turns.

    Args:
        begin: what stands before a text that does not begin with a question.
        user: what a question begins with.
        answer: what an answer begins with.
        end: what an answer ends with.
    """
    return (
        _PICTURES + "{% if messages[0]['role'] == 'system' %}" + begin
        + "{% elif shown.pictures %}" + begin + SYSTEM + "{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        + user + _CONTENT + answer + "{% elif message['role'] == 'assistant' %}" + _CONTENT + end
        + "{% else %}" + _CONTENT + "{% endif %}{% endfor %}"
    )  # fmt: skip


LLAMA2_TEMPLATE = _template("{{ bos_token }}", "{{ bos_token + '[INST] ' }}", "{{ ' [/INST] ' }}", "{{ eos_token }}")
"""Prompt of the LLaMA-2 variant: `<s>{system text}<s>[INST] <Img>{image tokens}</Img> {question} [/INST] `."""
VICUNA_TEMPLATE = "{{ bos_token }}" + _template("", "{{ '###Human: ' }}", "{{ '###Assistant: ' }}", "")
"""Prompt of the Q-Former variant: `<s>{system text}###Human: <Img>{image tokens}</Img> {question}###Assistant: `."""


class MiniGPT4Processor(ProcessorMixin):
    """Pictures and chat for a MiniGPT-4: resizes, normalizes, and leaves as many places as a picture has image tokens.

    Its tokenizer pads on the left, whatever the language model's folder says: `generate` goes on behind the last column.

    Args:
        image_processor: makes the pixels; BLIP's, at the tower's size.
        tokenizer: the language model's, with the image token added.
        image_seq_length: image tokens of a picture.
        chat_template: `LLAMA2_TEMPLATE` or `VICUNA_TEMPLATE`.
        image_token: what stands for a picture in a text.
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
        """As any processor's; a prompt of the chat template, which begins with the text's mark, gets no second one."""
        told = "add_special_tokens" in {**kwargs, **kwargs.get("text_kwargs", {})}
        texts = [text] if isinstance(text, str) else list(text or ())
        begin = self.tokenizer.bos_token
        if not told and begin and texts and all(isinstance(one, str) and one.startswith(begin) for one in texts):
            kwargs["add_special_tokens"] = False
        return super().__call__(images, text, *args, **kwargs)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The places for one picture's image tokens."""
        return self.image_token * self.image_seq_length
