"""Collate queries into a padded batch: chat template, image tokens, targets, labels and subject mask."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_neuralgate.data.image_files import Picture
from lightning_neuralgate.data.pictures import CACHE_BYTES, CachingProcessor
from lightning_neuralgate.errors import DataFormatError, ModelLayoutError
from lightning_neuralgate.gate.spans import TokenSpan, subject_mask, subject_token_span
from lightning_neuralgate.hf.forward import IGNORED

Role = Literal["sensitive", "benign", "retention"]
_TOKEN_KEYS = ("input_ids", "attention_mask", "token_type_ids")
_DECODER_KEYS = (*_TOKEN_KEYS, "mm_token_type_ids")


@dataclass(frozen=True)
class QueryRow:
    """One row of a batch.

    Attributes:
        query: the user's question.
        role: sensitive, benign, or a retention question.
        image: the picture the query is about, or None.
        subject: words that name the private thing; empty for a row without a subject.
        target: start of the answer to train on; None for a prompt.
        context: sentence in front of the query.
        record_id: record the query belongs to, for error messages and logs.
        truth: the true value of the attribute, if known.
        synonyms: other wordings of `truth` that count as correct.
        counted: False for a duplicate of another process's row, which metrics skip.
        earlier: messages of the chat before the query, as (role, text) with the roles system, user and assistant. The picture
            stands in the first message of the user.
        opening: start of the answer, which generation continues, or behind which `target` stands; it has no loss.
    """

    query: str
    role: Role
    image: Picture | None
    subject: str = ""
    target: str | None = None
    context: str = ""
    record_id: str = "?"
    truth: str | None = None
    synonyms: tuple[str, ...] = ()
    counted: bool = True
    earlier: tuple[tuple[str, str], ...] = ()
    opening: str = ""


class _EncodedRow(NamedTuple):
    """The inputs of one row, the number of target tokens at its end, and the subject's token span."""

    inputs: dict[str, Tensor]
    num_target_tokens: int
    subject: TokenSpan | None


class PrivacyPairCollator:
    """Collate `QueryRow`s into a batch, with any Hugging Face image-text-to-text processor.

    Rows with a target end with it; rows without one end with the generation prompt. A batch has the keys

    - `input_ids`, `attention_mask`: (B, T).
    - `labels`: (B, T), -100 outside targets.
    - `subject_mask`: (B, T) bool, True at the subject's tokens in the query.
    - `target_columns`: int, the smallest number of last columns that contains all targets.
    - `subject`, `role`, `record_id`, `truth`, `synonyms`, `counted`: lists of length B.
    - the processor's other outputs (`pixel_values`, grids, ...).

    Args:
        processor: the model's processor.
        padding_side: "left" (required for generation; targets then share the last columns) or "right".
        picture_cache_bytes: size of the cache of processed pictures (`CachingProcessor`); 0 turns it off.

    Raises:
        DataFormatError: an image cannot be read, or the processor cannot use it.
        ModelLayoutError: the processor's chat template is missing, or is not for pictures.
        SubjectNotFoundError: a query does not name its subject.
    """

    def __init__(
        self, processor: Any, padding_side: Literal["left", "right"] = "left", picture_cache_bytes: int = CACHE_BYTES
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got '{padding_side}'")
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.padding_side = padding_side
        self.caching_processor = CachingProcessor(processor, picture_cache_bytes)
        self._template_tail: int | None = None
        self._has_causal_suffix = "suffix" in inspect.signature(type(processor).__call__).parameters

    def __call__(self, rows: Sequence[QueryRow]) -> dict[str, Any]:
        if not rows:
            raise ValueError("a batch needs at least one row")
        encoded = [self._encode(row) for row in rows]
        lengths = [len(row.inputs["input_ids"][0]) for row in encoded]
        width = max(lengths)
        batch: dict[str, Any] = self._pad([row.inputs for row in encoded])
        labels = torch.full((len(rows), width), IGNORED)
        for index, ((inputs, num_target_tokens, _), length) in enumerate(zip(encoded, lengths, strict=True)):
            end = width if self.padding_side == "left" else length
            if num_target_tokens:
                labels[index, end - num_target_tokens : end] = inputs["input_ids"][0, -num_target_tokens:]
        batch["labels"] = labels
        target_columns = (labels != IGNORED).any(0).nonzero()
        batch["target_columns"] = width - int(target_columns[0, 0]) if len(target_columns) else 0
        batch["subject_mask"] = subject_mask([row.subject for row in encoded], lengths, width, self.padding_side)
        for key in ("subject", "role", "record_id", "truth", "synonyms", "counted"):
            batch[key] = [getattr(row, key) for row in rows]
        return batch

    def tail_tokens(self, rows: Sequence[QueryRow]) -> list[int]:
        """Count each row's tokens between question and target: the template's last ones, and a started answer's."""
        if self._template_tail is None:  # what the prompts of two different questions end with; at least the last token
            probe = QueryRow("", "benign", rows[0].image)
            first, second = (self._prompt_ids(replace(probe, query=query)) for query in ("Why?", "Name it"))
            ends = zip(reversed(first), reversed(second), strict=False)
            differing = (count for count, (a, b) in enumerate(ends) if a != b)
            self._template_tail = max(1, next(differing, min(len(first), len(second))))
        return [
            self._template_tail + len(self._prompt_ids(row)) - len(self._prompt_ids(replace(row, opening="")))
            if row.opening
            else self._template_tail
            for row in rows
        ]

    def _prompt_ids(self, row: QueryRow) -> list[int]:
        prompt, _ = self._texts(row)
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def _encode(self, row: QueryRow) -> _EncodedRow:
        prompt, full = self._texts(row)
        add_special_tokens = not (self.tokenizer.bos_token and prompt.startswith(self.tokenizer.bos_token))
        options = {"return_tensors": "pt", "add_special_tokens": add_special_tokens}
        if row.image is None:
            inputs = dict(self.processor(text=[prompt], **options))
        else:
            try:
                inputs = self.caching_processor(prompt, row.image, row.record_id, **options)
            except DataFormatError as error:
                image_token = getattr(self.processor, "image_token", None)
                if isinstance(image_token, str) and image_token not in prompt and "cannot use" in str(error):
                    raise self._template_error(f"the processor rejects its prompts: {error}") from error
                raise
        inputs.pop("labels", None)  # PaliGemma's
        ids: Tensor = inputs["input_ids"]
        image_id = getattr(self.processor, "image_token_id", None)
        if row.image is not None and isinstance(image_id, int) and not bool((ids == image_id).any()):
            raise self._template_error("its prompts have no place for the picture")
        span = None
        if row.subject:
            span = subject_token_span(ids[0].tolist(), self.tokenizer, row.query, row.subject, row.record_id)
        if full is None:
            return _EncodedRow(inputs, 0, span)
        prompt_ids = self.tokenizer(prompt, add_special_tokens=add_special_tokens)["input_ids"]
        full_ids = self.tokenizer(full, add_special_tokens=add_special_tokens)["input_ids"]
        target = full_ids[len(prompt_ids) :]
        if full_ids[: len(prompt_ids)] != prompt_ids:
            # the tokenizer merged the prompt's last characters with the target's first ones, but generation continues
            # from the prompt's own tokens
            target = self.tokenizer(full.removeprefix(prompt), add_special_tokens=False)["input_ids"]
        for key, values in inputs.items():
            # processors differ in the names of what they return per token; the shape is always that of the ids
            if values.shape == ids.shape:
                if key == "input_ids":
                    extension = torch.tensor([target], dtype=values.dtype)
                else:  # attend to the target; its token type is text, or PaliGemma's for text that is read causally
                    one = key == "attention_mask" or (key == "token_type_ids" and self._has_causal_suffix)
                    extension = values.new_full((1, len(target)), int(one))
                inputs[key] = torch.cat([values, extension], dim=1)
        return _EncodedRow(inputs, len(target), span)

    def _template_error(self, problem: str) -> ModelLayoutError:
        found = (
            "has no chat template" if getattr(self.processor, "chat_template", None) is None else "has a chat template"
        )
        source = getattr(self.tokenizer, "name_or_path", "") or type(self.processor).__name__
        return ModelLayoutError(
            f"the processor of '{source}' {found}, but {problem}. Put the model's own chat_template.jinja, for pictures and "
            "text, into its folder"
        )

    def _texts(self, row: QueryRow) -> tuple[str, str | None]:
        """Return the prompt, and the prompt with its target (None without one)."""
        messages = [*row.earlier, ("user", f"{row.context} {row.query}".strip())]
        answer = " ".join(part for part in (row.opening, row.target) if part)
        if getattr(self.processor, "chat_template", None) is None:
            prompt, full = "\n".join(text for _, text in messages), ""
        else:
            prompt, full = self._templated(messages, row.image is not None, answer)
        if not answer:
            return prompt, None
        if full.startswith(prompt) and answer in full[len(prompt) :]:
            start = full.index(answer, len(prompt))
        else:
            start = len(prompt) + (not prompt[-1].isspace())
            full = prompt + " " * (start - len(prompt)) + answer
        if row.opening:
            prompt = full[: start + len(row.opening)]
        return prompt, None if row.target is None else full[: start + len(answer)]

    def _templated(self, messages: Sequence[tuple[str, str]], picture: bool, answer: str) -> tuple[str, str]:
        """Return the chat template's prompt, and the same with an answer (empty without one)."""
        chat: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": text}]} for role, text in messages
        ]
        if picture:
            next(message for message in chat if message["role"] == "user")["content"].insert(0, {"type": "image"})
        try:
            prompt = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            if not answer:
                return prompt, ""
            chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            return prompt, self.processor.apply_chat_template(chat, tokenize=False)
        except Exception as error:  # a template for text alone fails on the list of picture and text, in many ways
            raise self._template_error(f"it cannot be applied to a picture and a text: {error}") from error

    def _pad(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack rows: pad token sequences, concatenate everything else (pixels, grids)."""
        batch = {}
        for key in dict.fromkeys(key for row in rows for key in row):
            values = [row[key] for row in rows if key in row]
            # by suffix, because the inputs of a second text encoder have a prefix, such as qformer_input_ids
            if key.endswith(_TOKEN_KEYS) and values[0].ndim == 2:
                fill = (self.tokenizer.pad_token_id or 0) if key.endswith("input_ids") else 0
                width = max(value.shape[1] for value in values)
                # such an encoder, like InstructBLIP's Q-Former, numbers positions from the first column
                side = self.padding_side if key in _DECODER_KEYS else "right"
                values = [_padded(value, width, fill, side) for value in values]
            batch[key] = torch.cat(values)
        return batch


def _padded(values: Tensor, width: int, fill: int, side: str) -> Tensor:
    padding = values.new_full((1, width - values.shape[1]), fill)
    return torch.cat([padding, values] if side == "left" else [values, padding], dim=1)
