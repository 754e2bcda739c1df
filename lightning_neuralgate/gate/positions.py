"""Position rules: at which tokens of a batch the gradient of a projection passes, is gated by rows, or is closed.

A rule is one object with one method, so a rule of your own is one class (docs/trainer.md has an example).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.spans import last_position
from lightning_neuralgate.hf.forward import IGNORED

Scope = Literal["subject_last", "subject", "from_subject", "all", "divergence", "tail"]
SCOPES: tuple[Scope, ...] = ("subject_last", "subject", "from_subject", "all", "divergence", "tail")
"""Names of the rules of this module, see `position_rule`."""
SUBJECT_SCOPES: tuple[Scope, ...] = ("subject_last", "subject", "from_subject", "all")
"""The scopes that say where the row gate applies; all other positions are open."""

TWIN = "twin"
"""The batch's key of twins: for each row the index of the sensitive or benign row that it is paired with, or None."""
TAIL_TOKENS = "tail_tokens"
"""The batch's key of tails: for each row the number of tokens between the question and the first token with a label."""


class Positions(NamedTuple):
    """What happens to the gradient at each token. A token in neither mask is open: its gradient passes in full.

    Attributes:
        gated: (B, T) bool, tokens at which the row gate applies; None: nowhere.
        closed: (B, T) bool, tokens of which no gradient passes, also where `gated` is True; None: nowhere.
    """

    gated: Tensor | None = None
    closed: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Positions:
        """Apply a function to both masks."""
        return Positions(*(None if mask is None else function(mask) for mask in self))


class PositionRule(ABC):
    """Decides for each token of a batch whether gradient passes, is gated by rows, or is closed.

    Attributes:
        gates_all: whether no token is ever open, so that rows which the row gate closes get no gradient at all and can be
            kept bit-identical (`MaskedRowRestorer`).
    """

    gates_all = False

    @abstractmethod
    def __call__(self, subject_mask: Tensor, batch: Mapping[str, Any]) -> Positions:
        """Return the positions of a batch.

        Args:
            subject_mask: (B, T) bool, True at the subject's tokens.
            batch: the training batch; where subjects are found in token ids, the inputs of the model.
        """

    def __str__(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class SubjectScope(PositionRule):
    """The paper's rule and its variants: the row gate applies at the subject, everything else is open.

    Args:
        scope: one of `SUBJECT_SCOPES`, see `scope_positions`.
    """

    scope: Scope = "subject_last"

    @property
    def gates_all(self) -> bool:  # type: ignore[override]
        return self.scope == "all"

    def __call__(self, subject_mask: Tensor, batch: Mapping[str, Any]) -> Positions:
        return Positions(gated=scope_positions(self.scope, subject_mask))

    def __str__(self) -> str:
        return self.scope


@dataclass(frozen=True)
class Divergence(PositionRule):
    """Close the common beginning of a sensitive row and its benign twin; gradient passes from the first different token on.

    Up to there (picture, first words) both rows have the same states, so that whatever is learnt there holds for both. Twins
    are about the same picture. Rows without a twin, such as retention questions, are open.

    Args:
        then: what applies behind the common beginning, and to rows without a twin: a scope or a rule, such as
            "subject_last". Default: everything is open.
        twins: a function of the batch that returns for each row the index of its twin, or None. Default: the batch's `twin`,
            as `PrivacyPairDataModule` provides it.

    Example:
        >>> batch = {"input_ids": torch.tensor([[1, 5, 7, 2], [1, 5, 8, 2], [1, 5, 9, 3]]), "twin": [1, 0, None]}
        >>> Divergence()(torch.zeros(3, 4, dtype=torch.bool), batch).closed
        tensor([[ True,  True, False, False],
                [ True,  True, False, False],
                [False, False, False, False]])
    """

    then: Scope | PositionRule | None = None
    twins: Callable[[Mapping[str, Any]], Sequence[int | None]] | None = None

    def __call__(self, subject_mask: Tensor, batch: Mapping[str, Any]) -> Positions:
        twins = entry(batch, TWIN, "pass Divergence(twins=function)") if self.twins is None else self.twins(batch)
        ids, real = entry(batch, "input_ids", "choose another scope"), real_tokens(batch)
        rows = [row if twin is None else twin for row, twin in enumerate(twins)]
        if len(rows) != len(ids):
            raise UnsupportedSetupError(f"the batch has {len(ids)} rows, but there are twins for {len(rows)}")
        has_twin = torch.tensor([twin is not None for twin in twins], device=ids.device)
        shared = shared_tokens(ids, real, torch.tensor(rows, device=ids.device))
        closed = has_twin[:, None] & real & (real.cumsum(1) <= shared[:, None])
        inner = Positions() if self.then is None else position_rule(self.then)(subject_mask, batch)
        return Positions(inner.gated, closed if inner.closed is None else closed | inner.closed)

    def __str__(self) -> str:
        return "divergence" if self.then is None else f"divergence then {self.then}"


@dataclass(frozen=True)
class Tail(PositionRule):
    """Close all tokens up to the end of the question: gradient passes at the template's last tokens and at the answer only.

    A control for `Divergence`: refusals are decided there, but these tokens are the same in every prompt. Retention rows
    (by the batch's `role`) are open.

    Args:
        template_tokens: number of tokens between the question and the first token with a label. Default: the batch's
            `tail_tokens`, as `PrivacyPairDataModule` provides it for each row.

    Example:
        >>> batch = {"input_ids": torch.ones(1, 5), "labels": torch.tensor([[-100, -100, -100, 4, 2]])}
        >>> Tail(template_tokens=1)(torch.zeros(1, 5, dtype=torch.bool), batch).closed
        tensor([[ True,  True, False, False, False]])
    """

    template_tokens: int | None = None

    def __call__(self, subject_mask: Tensor, batch: Mapping[str, Any]) -> Positions:
        real = real_tokens(batch)
        tail = self.starting_columns(batch)[:, None] <= torch.arange(real.shape[1], device=real.device)
        roles = batch.get("role") or [None] * len(real)
        edited = torch.tensor([role != "retention" for role in roles], device=real.device)
        return Positions(closed=edited[:, None] & real & ~tail)

    def starting_columns(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the column of each row's first token behind the question, (B,)."""
        counts = self.template_tokens
        if counts is None:
            counts = entry(batch, TAIL_TOKENS, "pass Tail(template_tokens=number)")
        answer = entry(batch, "labels", "pass the model labels, or another scope") != IGNORED
        columns = torch.arange(answer.shape[1], device=answer.device)
        first = torch.where(answer, columns, answer.shape[1]).amin(1)
        return first - torch.tensor(counts, device=answer.device)

    def __str__(self) -> str:
        return "tail"


@dataclass(frozen=True)
class ShuffledPositions(PositionRule):
    """A control: as many gated and closed tokens in each row, at random places.

    The places depend on the seed and the row's tokens. They are the same in every epoch, but not in twins, so that full rows
    are run instead of shared prefixes.

    Args:
        rule: the scope or rule whose positions are shuffled.
        seed: seed of the places.

    Example:
        >>> batch = {"input_ids": torch.tensor([[0, 5, 7, 2]]), "attention_mask": torch.tensor([[0, 1, 1, 1]])}
        >>> mask = torch.tensor([[False, True, False, False]])
        >>> ShuffledPositions("subject_last", seed=0)(mask, batch).gated
        tensor([[False, False, False,  True]])
    """

    rule: Scope | PositionRule
    seed: int = 0

    @property
    def gates_all(self) -> bool:  # type: ignore[override]
        return position_rule(self.rule).gates_all

    def __call__(self, subject_mask: Tensor, batch: Mapping[str, Any]) -> Positions:
        ids, real = entry(batch, "input_ids", "choose another scope"), real_tokens(batch)
        places = torch.arange(ids.shape[1], device=ids.device).repeat(len(ids), 1)
        for row, (tokens, inside) in enumerate(zip(ids.cpu(), real.cpu(), strict=True)):
            name = f"{self.seed}/{tokens[inside].tolist()}"
            generator = torch.Generator().manual_seed(
                int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "big")
            )
            columns = inside.nonzero()[:, 0]
            shuffled = columns[torch.randperm(len(columns), generator=generator)]
            places[row, columns.to(ids.device)] = shuffled.to(ids.device)
        return position_rule(self.rule)(subject_mask, batch).map(lambda mask: mask.gather(1, places))

    def __str__(self) -> str:
        return f"{self.rule} shuffled by {self.seed}"


def position_rule(scope: Scope | PositionRule) -> PositionRule:
    """Return the rule of a scope's name; a rule is returned as it is.

    Raises:
        ValueError: there is no such scope.
    """
    if isinstance(scope, PositionRule):
        return scope
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}, or a PositionRule; got '{scope}'")
    if scope == "divergence":
        return Divergence()
    return Tail() if scope == "tail" else SubjectScope(scope)


def scope_positions(scope: Scope, subject_mask: Tensor) -> Tensor:
    """Return the token positions at which the row gate applies, (B, T) bool.

    Args:
        scope: `subject_last` (the subject's last token), `subject` (all its tokens), `from_subject` (its first token and
            everything after it) or `all`.
        subject_mask: (B, T) bool, True at the subject's tokens.

    >>> mask = torch.tensor([[False, True, True, False]])
    >>> scope_positions("subject_last", mask), scope_positions("from_subject", mask)
    (tensor([[False, False,  True, False]]), tensor([[False,  True,  True,  True]]))
    """
    if scope == "subject_last":
        return last_position(subject_mask)
    if scope == "subject":
        return subject_mask
    if scope == "from_subject":
        return subject_mask.cumsum(-1) > 0
    return torch.ones_like(subject_mask)


def shared_tokens(ids: Tensor, real: Tensor, twins: Tensor) -> Tensor:
    """Count the tokens that each row and its twin begin with, (B,).

    Args:
        ids: (B, T) token ids, padded on either side.
        real: (B, T) bool, False at padding.
        twins: (B,), the index of each row's twin.
    """
    width = ids.shape[1]
    columns = torch.arange(width, device=ids.device)
    starts = torch.where(real, columns, width).amin(1)
    tokens = ids.gather(1, (starts[:, None] + columns).clamp(max=width - 1))
    inside = columns < real.sum(1)[:, None]
    same = (tokens == tokens[twins]) & inside & inside[twins]
    return same.long().cumprod(1).sum(1)


def real_tokens(batch: Mapping[str, Any]) -> Tensor:
    """Return which tokens of a batch are not padding, (B, T) bool; without `attention_mask`, all."""
    mask = batch.get("attention_mask")
    ids = entry(batch, "input_ids", "choose another scope")
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


def entry(batch: Mapping[str, Any], key: str, instead: str) -> Any:
    """Return an entry of a batch that a rule needs.

    Raises:
        UnsupportedSetupError: the batch has none; the message names the way out, `instead`.
    """
    if batch.get(key) is None:
        raise UnsupportedSetupError(
            f"the position rule needs '{key}' in the batch, found {', '.join(sorted(map(str, batch))) or 'nothing'}: use "
            f"the batches of PrivacyPairDataModule, or {instead}"
        )
    return batch[key]
