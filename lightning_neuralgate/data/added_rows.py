"""The rows that an edit's batches hold in addition to the rows of query pairs: which pairs get which, and when."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.indirect_rows import indirect_rows
from lightning_neuralgate.data.records import PrivacyRecord, QueryPair
from lightning_neuralgate.data.recovery_rows import recovery_rows

RECOVERY_DEPTHS = (1, 3, 5, 8)


class AddedRows:
    """Draws rows for each query pair, from seed, epoch and pair alone, so that any batches and processes give the same ones.

    Args:
        records: the edit records, whose values serve as wrong values of each other.
        tokenizer: the model's tokenizer.
        recovery_share: probability with which a pair gets recovery rows (`recovery_rows`) in an epoch.
        recovery_depths: lengths of the given start of an answer, in tokens, of which one is drawn.
        indirect_share: probability with which a pair gets indirect rows (`indirect_rows`) in an epoch.
        seed: seed of the draws.

    Raises:
        ValueError: a share is not in [0, 1], or the depths are no positive integers.
    """

    def __init__(
        self,
        records: Iterable[PrivacyRecord],
        tokenizer: Any,
        recovery_share: float = 0.0,
        recovery_depths: Sequence[int] = RECOVERY_DEPTHS,
        indirect_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, share in {"recovery_share": recovery_share, "indirect_share": indirect_share}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be a probability between 0 and 1, got {share}")
        if not recovery_depths or any(not isinstance(depth, int) or depth < 1 for depth in recovery_depths):
            raise ValueError(f"recovery_depths must hold numbers of tokens of at least 1, got {recovery_depths}")
        self.tokenizer = tokenizer
        self.recovery_share, self.recovery_depths = recovery_share, tuple(recovery_depths)
        self.indirect_share, self.seed = indirect_share, seed
        self._values: dict[str, list[str]] = {}
        for pair in (pair for record in records for pair in record.pairs):
            for attribute, value in (
                (pair.sensitive_attribute, pair.sensitive_truth),
                (pair.benign_attribute, pair.benign_truth),
            ):
                if attribute and value:
                    self._values.setdefault(attribute, []).append(value)

    @property
    def enabled(self) -> bool:
        """Whether any rows may be added."""
        return bool(self.recovery_share or self.indirect_share)

    def draw(self, pair: QueryPair, rows: Sequence[QueryRow], epoch: int) -> list[QueryRow]:
        """Return the added rows of a pair: up to two recovery rows, and up to two indirect rows.

        Args:
            pair: the pair.
            rows: its sensitive and its benign row.
            epoch: number of the epoch.
        """
        sensitive, benign = rows
        name = f"{self.seed}/{epoch}/{sensitive.record_id}/{pair.sensitive}/{pair.benign}"
        added: list[QueryRow] = []
        # a source of random numbers for each kind, so that neither option changes the rows of the other
        rng = random.Random(f"recovery/{name}")
        if rng.random() < self.recovery_share:
            added += recovery_rows(pair, sensitive, benign, rng.choice(self.recovery_depths), self.tokenizer)
        rng = random.Random(f"indirect/{name}")
        if rng.random() < self.indirect_share:
            added += indirect_rows(pair, sensitive, benign, self._values, rng)
        return added
