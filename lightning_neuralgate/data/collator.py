"""From queries to a padded batch: chat template, image tokens, target, labels and the mask of the subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_neuralgate.data.pictures import ROOM, Picture, PictureProcessor
from lightning_neuralgate.gate.spans import TokenSpan, subject_mask, subject_token_span
from lightning_neuralgate.hf.forward import IGNORED

Role = Literal["sensitive", "benign", "retention"]
_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids")
_OF_THE_DECODER = (*_OF_TOKENS, "mm_token_type_ids")


@dataclass(frozen=True)
class QueryRow:
    """One row of a batch.

    Attributes:
        query: the question as the user asks it.
        role: what it is there for.
        image: picture that goes with it; None for a question without one.
        subject: words that name the private thing; empty for a row without a subject.
        target: start of the answer that is trained; None for a prompt to be answered.
        context: a sentence put in front of the query.
        record_id: for error messages and logs.
        truth: the true value of what is asked for, where known.
        synonyms: other words that say it.
        counted: False for a row that another process has, too.
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


class PrivacyPairCollator:
    """Makes batches out of `QueryRow`s with any Hugging Face image-text-to-text processor.

    A batch holds `input_ids`, `attention_mask` and `labels` (B, T; labels are -100 outside targets), `subject_mask`
    (B, T) bool, lists of B with `subject`, `role`, `record_id`, `truth`, `synonyms` and `counted`, the number
    `target_columns`, how many of the last columns hold all targets, and whatever else the processor makes (`pixel_values`,
    grids, ...). Rows with a target end with it; rows without one end with the generation
    prompt.

    Args:
        processor: the model's processor.
        padding_side: "left" (as generation needs it; targets then share the last columns) or "right".
        picture_room: bytes of processed pictures that are kept for the next query about them (`PictureProcessor`); 0: none.

    Raises:
        DataFormatError: an image that cannot be read.
        SubjectNotFoundError: a subject that is not in its query.
    """

    def __init__(
        self, processor: Any, padding_side: Literal["left", "right"] = "left", picture_room: int = ROOM
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got '{padding_side}'")
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.padding_side = padding_side
        self.pictures = PictureProcessor(processor, picture_room)

    def __call__(self, rows: Sequence[QueryRow]) -> dict[str, Any]:
        if not rows:
            raise ValueError("a batch needs at least one row")
        encoded = [self._encode(row) for row in rows]
        lengths = [len(inputs["input_ids"][0]) for inputs, _, _ in encoded]
        width = max(lengths)
        batch: dict[str, Any] = self._pad([inputs for inputs, _, _ in encoded])
        labels = torch.full((len(rows), width), IGNORED)
        for index, ((inputs, targets, _), length) in enumerate(zip(encoded, lengths, strict=True)):
            end = width if self.padding_side == "left" else length
            if targets:
                labels[index, end - targets : end] = inputs["input_ids"][0, -targets:]
        batch["labels"] = labels
        told = (labels != IGNORED).any(0).nonzero()
        batch["target_columns"] = width - int(told[0, 0]) if len(told) else 0
        batch["subject_mask"] = subject_mask([span for _, _, span in encoded], lengths, width, self.padding_side)
        for key in ("subject", "role", "record_id", "truth", "synonyms", "counted"):
            batch[key] = [getattr(row, key) for row in rows]
        return batch

    def _encode(self, row: QueryRow) -> tuple[dict[str, Tensor], int, TokenSpan | None]:
        """Inputs of one row, number of target tokens at its end, and the subject's tokens."""
        prompt, full = self._texts(row)
        special = not (self.tokenizer.bos_token and prompt.startswith(self.tokenizer.bos_token))
        options = {"return_tensors": "pt", "add_special_tokens": special}
        if row.image is None:
            inputs = dict(self.processor(text=[prompt], **options))
        else:
            inputs = self.pictures(prompt, row.image, row.record_id, **options)
        ids: Tensor = inputs["input_ids"]
        span = None
        if row.subject:
            span = subject_token_span(ids[0].tolist(), self.tokenizer, row.query, row.subject, row.record_id)
        if full is None:
            return inputs, 0, span
        asked = self.tokenizer(prompt, add_special_tokens=special)["input_ids"]
        told = self.tokenizer(full, add_special_tokens=special)["input_ids"]
        target = told[len(asked) :]
        if told[: len(asked)] != asked:
            # a tokenizer may merge the prompt's last characters with the target's first ones, but an answer is generated
            # behind the prompt as it stands
            target = self.tokenizer(full.removeprefix(prompt), add_special_tokens=False)["input_ids"]
        for key, values in inputs.items():
            if values.shape == ids.shape:
                more = torch.tensor([target]) if key == "input_ids" else _continued(key, values, len(target))
                inputs[key] = torch.cat([values, more.to(values.dtype)], dim=1)
        return inputs, len(target), span

    def _texts(self, row: QueryRow) -> tuple[str, str | None]:
        """The prompt, and the prompt with its target (None without one)."""
        words = f"{row.context} {row.query}".strip()
        if getattr(self.processor, "chat_template", None) is None:
            prompt, full = words, None
        else:
            content: list[dict[str, str]] = [] if row.image is None else [{"type": "image"}]
            messages = [{"role": "user", "content": [*content, {"type": "text", "text": words}]}]
            prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            full = None
            if row.target is not None:
                answer = {"role": "assistant", "content": [{"type": "text", "text": row.target}]}
                full = self.processor.apply_chat_template([*messages, answer], tokenize=False)
        if row.target is None:
            return prompt, None
        if full is not None and full.startswith(prompt) and row.target in full[len(prompt) :]:
            return prompt, full[: full.index(row.target, len(prompt)) + len(row.target)]
        return prompt, prompt + ("" if prompt[-1].isspace() else " ") + row.target

    def _pad(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack rows: sequences are padded, everything else (pixels, grids) is concatenated."""
        batch = {}
        for key in dict.fromkeys(key for row in rows for key in row):
            values = [row[key] for row in rows if key in row]
            if key.endswith(_OF_TOKENS) and values[0].ndim == 2:
                fill = (self.tokenizer.pad_token_id or 0) if key.endswith("input_ids") else 0
                width = max(value.shape[1] for value in values)
                # an encoder beside the decoder, such as InstructBLIP's, counts positions from the first column on
                side = self.padding_side if key in _OF_THE_DECODER else "right"
                values = [_padded(value, width, fill, side) for value in values]
            batch[key] = torch.cat(values)
        return batch


def _padded(values: Tensor, width: int, fill: int, side: str) -> Tensor:
    padding = values.new_full((1, width - values.shape[1]), fill)
    return torch.cat([padding, values] if side == "left" else [values, padding], dim=1)


def _continued(key: str, values: Tensor, length: int) -> Tensor:
    """How a per-token input goes on over the target: attended to, and of the type of text."""
    return values.new_full((1, length), 1 if key == "attention_mask" else 0)
