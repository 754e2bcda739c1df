"""Subjects of a training batch: which subject each row is about, and at which tokens its gate applies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_neuralgate.errors import GateMismatchError, SubjectNotFoundError, UnsupportedSetupError
from lightning_neuralgate.gate.positions import PositionRule, Positions
from lightning_neuralgate.gate.spans import SupportsDecode, TokenSpan, last_named_subject, normalize_subject
from lightning_neuralgate.hf.forward import IGNORED

SubjectFinder = Callable[[Any], tuple[Tensor, Sequence[str | None]]]
"""A function of a batch that returns the subject mask, (B, T) bool, and the subject of each of the B rows."""

_SKIPPED_TOKEN = -1
_CACHE_SIZE = 16384
_WARN_AFTER_BATCHES = 10
"""The share of rows without a subject is checked after this number of batches, or at the end of a shorter training."""
_WARN_ABOVE_SHARE = 0.1


class SubjectsInBatch:
    """Read subject mask and subjects from the batch itself, where `PrivacyPairDataModule` puts them.

    Args:
        mask_key: the batch's key of the mask.
        subject_key: the batch's key of the subjects.
    """

    def __init__(self, mask_key: str = "subject_mask", subject_key: str = "subject") -> None:
        self.mask_key, self.subject_key = mask_key, subject_key

    @property
    def is_default(self) -> bool:
        """Whether the keys are those of `PrivacyPairCollator`."""
        return (self.mask_key, self.subject_key) == ("subject_mask", "subject")

    def __call__(self, batch: Any) -> tuple[Tensor, Sequence[str | None]]:
        for key in (self.mask_key, self.subject_key):
            if not isinstance(batch, Mapping) or key not in batch:
                found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
                raise UnsupportedSetupError(
                    f"NeuralGateCallback needs '{key}' in the training batch, found {found}. Use PrivacyPairDataModule, "
                    "name your own keys with subject_mask_key and subject_key, or pass the model's tokenizer to the "
                    "callback, so that it finds the subjects in the token ids"
                )
        return batch[self.mask_key], batch[self.subject_key]


class SubjectsInText:
    """Find subjects by name in the token ids that a model is called with.

    If a row names several subjects, the last one counts. If labels are given, the tokens without a label (usually the
    prompt) are searched first, so that an answer that repeats the subject does not move its position; if they name no
    subject, for example because the prompt has labels too, the full row is searched.

    Args:
        tokenizer: the tokenizer, used to decode the ids.
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

    def __init__(self, tokenizer: SupportsDecode, subjects: Sequence[str]) -> None:
        self.tokenizer, self.subjects = tokenizer, tuple(subjects)
        self._cache: dict[bytes, tuple[str, TokenSpan] | None] = {}  # rows come again every epoch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    def __call__(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Sequence[str | None]]:
        ids: Tensor = inputs["input_ids"].detach()
        labels = inputs.get("labels")
        prompts = None
        if isinstance(labels, Tensor) and labels.shape == ids.shape:
            prompts = ids.masked_fill(labels.to(ids.device) != IGNORED, _SKIPPED_TOKEN).cpu()
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        names: list[str | None] = []
        for index, row in enumerate(ids.cpu()):
            found = None if prompts is None else self._find_cached(prompts[index])
            found = found or self._find_cached(row)
            names.append(None if found is None else found[0])
            if found is not None:
                mask[index, found[1].first : found[1].last + 1] = True
        return mask.to(ids.device), names

    def _find_cached(self, ids: Tensor) -> tuple[str, TokenSpan] | None:
        key = hashlib.blake2b(ids.numpy().tobytes(), digest_size=16).digest()
        if key not in self._cache:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            self._cache[key] = self._find(ids.tolist())
        return self._cache[key]

    def _find(self, ids: list[int]) -> tuple[str, TokenSpan] | None:
        positions = [
            position for position, value in enumerate(ids) if value >= 0
        ]  # some processors use -200 for images
        found = last_named_subject([ids[position] for position in positions], self.tokenizer, self.subjects)
        if found is None:
            return None
        return found[0], TokenSpan(positions[found[1].first], positions[found[1].last])


@dataclass(frozen=True)
class GatedBatch:
    """Where the gate applies in a batch, and whose gate.

    Attributes:
        positions: the gated and the closed token positions, (B, T) each.
        subjects: for each of the B rows the normalized subject (`normalize_subject`); "" for a row without one.
        width: T.
        content: the batch itself; where subjects are found in token ids, the inputs of the model.
    """

    positions: Positions
    subjects: tuple[str, ...]
    width: int
    content: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        mask: Tensor,
        names: Sequence[str | None],
        rule: PositionRule,
        gate_subjects: Sequence[str],
        content: Mapping[str, Any],
    ) -> GatedBatch:
        """Check what a `SubjectFinder` returned and apply the position rule.

        A subject whose name is given, but whose row of the mask is empty, masks nothing.

        Args:
            mask: the subject mask, (B, T).
            names: B subjects.
            rule: the position rule.
            gate_subjects: the subjects that the gate covers, as `normalize_subject` returns them.
            content: the batch, which the rule reads.

        Raises:
            UnsupportedSetupError: mask and subjects do not have matching shapes, or the rule lacks something in the batch.
            GateMismatchError: a row has a subject that the gate does not cover.
        """
        mask = mask.bool()
        subjects = [normalize_subject(str(name or "")) for name in names]
        if mask.ndim != 2 or len(subjects) != len(mask):
            raise UnsupportedSetupError(
                f"the subject mask must have shape (B, T), with one subject per row; got shape {tuple(mask.shape)} "
                f"and {len(subjects)} subjects"
            )
        has_subject = mask.any(-1)
        present = has_subject.tolist()  # the only device sync per batch
        for subject, is_present in zip(subjects, present, strict=True):
            if is_present and subject not in gate_subjects:
                raise GateMismatchError(
                    f"the batch contains the subject '{subject}', the gate covers {', '.join(gate_subjects)}; "
                    "locate that subject too, or leave its row of the subject mask empty"
                )
        subjects = [subject if is_present else "" for subject, is_present in zip(subjects, present, strict=True)]
        positions = rule(mask, content)
        for found in positions:
            if found is not None and found.shape != mask.shape:
                raise UnsupportedSetupError(
                    f"the position rule '{rule}' returned a mask of shape {tuple(found.shape)}; the subject mask has "
                    f"{tuple(mask.shape)}"
                )
        return cls(positions, tuple(subjects), mask.shape[1], content)

    def gate_values(self, gates: Mapping[str, Tensor]) -> Tensor:
        """Stack the gate values, (d,), of each row's subject to (B, d); all ones for a row without a subject."""
        ones = torch.ones_like(next(iter(gates.values())))
        return torch.stack([gates.get(subject, ones) for subject in self.subjects])


class UngatedRows:
    """Count rows without a subject, to which no gate applies, and warn or raise.

    Rows whose `role` in the batch is "retention" are not counted: they name no subject on purpose. Nor do rows that the batch
    marks as `added`, such as the indirect rows of `PrivacyPairDataModule`, but they are counted, and `strict` refuses them;
    only the warning of a high share leaves them out.

    Args:
        gate_subjects: the subjects of the gate, for messages.
        strict: raise an error at the first row without a subject.
    """

    def __init__(self, gate_subjects: Sequence[str], strict: bool = False) -> None:
        self.gate_subjects, self.strict = tuple(gate_subjects), strict
        self.in_batch = 0
        self.start()

    def start(self) -> None:
        """Start a training."""
        self._batches = self._rows = self._ungated = 0
        self._names_subject = self._checked = False
        self._roles: Sequence[Any] = ()
        self._record_ids: Sequence[Any] = ()
        self._added: Sequence[Any] = ()

    def start_batch(self, batch: Any) -> None:
        """Read roles, record ids and added rows of the next batch, if it has them."""
        self.in_batch = 0
        self._batches += 1
        content = batch if isinstance(batch, Mapping) else {}
        self._roles, self._record_ids, self._added = (
            value if isinstance(value := content.get(key), (list, tuple)) else ()
            for key in ("role", "record_id", "added")
        )
        if self._batches > _WARN_AFTER_BATCHES:
            self.warn()

    def update(self, subjects: Sequence[str]) -> None:
        """Count the rows of a forward pass.

        Args:
            subjects: the subject of each row; "" for a row without one.

        Raises:
            SubjectNotFoundError: `strict`, and a row has no subject.
        """
        roles = self._roles if len(self._roles) == len(subjects) else [None] * len(subjects)
        expected = [row for row, role in enumerate(roles) if role != "retention"]
        ungated = [row for row in expected if not subjects[row]]
        self.in_batch += len(ungated)
        self._rows += len(expected)
        on_purpose = self._added if len(self._added) == len(subjects) else [False] * len(subjects)
        self._ungated += sum(not on_purpose[row] for row in ungated)
        self._names_subject = self._names_subject or any(subjects)
        if self.strict and ungated:
            ids = self._record_ids if len(self._record_ids) == len(subjects) else ()
            records = f" (records {', '.join(str(ids[row]) for row in ungated[:5])})" if ids else ""
            raise SubjectNotFoundError(
                f"rows {', '.join(map(str, ungated[:5]))} of batch {self._batches - 1}{records} have no subject of the gate "
                f"({', '.join(self.gate_subjects)}), so that they would be trained ungated: name the subject in the "
                "question, give rows without one the role 'retention', or use strict=False"
            )

    def warn(self) -> None:
        """Warn, once per training, if the share of rows without a subject is high."""
        if self._checked or not self._rows:
            return
        self._checked = True
        if not self._names_subject and self._batches > _WARN_AFTER_BATCHES:
            rank_zero_warn(
                f"none of the first {_WARN_AFTER_BATCHES} batches names a subject of the gate "
                f"({', '.join(self.gate_subjects)}), so nothing has been gated: is it the right gate, and do the batches "
                "contain the questions?"
            )
        elif self._ungated > _WARN_ABOVE_SHARE * self._rows:
            rank_zero_warn(
                f"{self._ungated} of the first {self._rows} rows have no subject of the gate "
                f"({', '.join(self.gate_subjects)}) and are trained ungated; NeuralGateCallback(strict=True) names the first "
                "one, and gate/rows_without_subject in the logger counts them"
            )
