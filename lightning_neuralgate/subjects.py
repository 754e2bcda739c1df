"""Where the subjects of a batch stand, and which they are.

A subject finder takes a batch, whatever its form, and answers with the mask of the subject's tokens, (B, T) bool, and one
subject a row; a row without True in its mask has none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.subjects import Decoder, TokenSpan, named_subject

SubjectFinder = Callable[[Any], tuple[Tensor, Sequence[str | None]]]
NOT_TOLD = -100
"""Label of tokens that are asked and not answered (the convention of torch's cross entropy)."""
_SKIPPED = -1
_KNOWN_AT_MOST = 16384


class SubjectsInBatch:
    """A finder for batches that say it themselves, as those of `PrivacyPairDataModule` do.

    Args:
        mask_key: the batch's key of the mask.
        subject_key: the batch's key of the subjects.
    """

    def __init__(self, mask_key: str = "subject_mask", subject_key: str = "subject") -> None:
        self.mask_key, self.subject_key = mask_key, subject_key

    @property
    def is_default(self) -> bool:
        """Whether it looks where `PrivacyPairCollator` writes."""
        return (self.mask_key, self.subject_key) == ("subject_mask", "subject")

    def __call__(self, batch: Any) -> tuple[Tensor, Sequence[str | None]]:
        for key in (self.mask_key, self.subject_key):
            if not isinstance(batch, Mapping) or key not in batch:
                found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
                raise UnsupportedSetupError(
                    f"NeuralGateCallback needs '{key}' in the training batch, found {found}; PrivacyPairDataModule makes "
                    "it. Or name your own key with subject_mask_key and subject_key, or give the callback the model's "
                    "tokenizer, with which it finds the subjects by itself"
                )
        return batch[self.mask_key], batch[self.subject_key]


class SubjectsInText:
    """Finds the subjects that a text names, in the token ids that a model is given.

    The last one that a row names counts. Where labels are given, what has no label (the question, commonly) is searched
    first, so that an answer that names the subject again does not move its place; where that names nothing, as when the
    question is labelled too, the whole row is.

    Args:
        tokenizer: whatever decodes the ids.
        subjects: the subjects to look for; matching ignores case, spacing and plural.

    Example:
        >>> class Letters:
        ...     def decode(self, ids, **kwargs):
        ...         return "".join(map(chr, ids))
        >>> ids = torch.tensor([list(b"a passport?"), list(b"how so????!")])
        >>> mask, subjects = SubjectsInText(Letters(), ["passport"])({"input_ids": ids})
        >>> mask.sum(1), subjects
        (tensor([8, 0]), ['passport', None])
    """

    def __init__(self, tokenizer: Decoder, subjects: Sequence[str]) -> None:
        self.tokenizer, self.subjects = tokenizer, tuple(subjects)
        self._known: dict[bytes, tuple[str, TokenSpan] | None] = {}  # rows come again every epoch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}

    def __call__(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Sequence[str | None]]:
        ids: Tensor = inputs["input_ids"].detach()
        labels = inputs.get("labels")
        asked = None
        if isinstance(labels, Tensor) and labels.shape == ids.shape:
            asked = ids.masked_fill(labels.to(ids.device) != NOT_TOLD, _SKIPPED).cpu()
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        names: list[str | None] = []
        for row, whole in enumerate(ids.cpu()):
            found = None if asked is None else self._find(asked[row])
            found = found or self._find(whole)
            names.append(None if found is None else found[0])
            if found is not None:
                mask[row, found[1].first : found[1].last + 1] = True
        return mask.to(ids.device), names

    def _find(self, ids: Tensor) -> tuple[str, TokenSpan] | None:
        key = hashlib.blake2b(ids.numpy().tobytes(), digest_size=16).digest()
        if key not in self._known:
            if len(self._known) >= _KNOWN_AT_MOST:
                self._known.clear()
            self._known[key] = self._find_in(ids.tolist())
        return self._known[key]

    def _find_in(self, values: list[int]) -> tuple[str, TokenSpan] | None:
        places = [place for place, value in enumerate(values) if value >= 0]  # some processors mark images by -200
        found = named_subject([values[place] for place in places], self.tokenizer, self.subjects)
        if found is None:
            return None
        return found[0], TokenSpan(places[found[1].first], places[found[1].last])
