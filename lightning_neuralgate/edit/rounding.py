"""How much of an edit survives rounding to the type that the model is saved in."""

from __future__ import annotations

from typing import NamedTuple


class Rounding(NamedTuple):
    """Numbers of weights that an edit changed in float32, before and after rounding to the type of the checkpoint.

    Attributes:
        dtype: that type, such as `bfloat16`.
        changed: weights whose float32 value differs from the unedited one.
        kept: those of them that also differ after rounding, and so in the saved model.

    Example:
        >>> print(Rounding("bfloat16", 200, 150))
        150 of 200 changed weights (75.0 %) differ after rounding to bfloat16
    """

    dtype: str
    changed: int
    kept: int

    @property
    def share(self) -> float:
        """`kept` / `changed`; NaN where nothing changed."""
        return self.kept / self.changed if self.changed else float("nan")

    def __str__(self) -> str:
        share = f" ({100 * self.share:.1f} %)" if self.changed else ""
        return f"{self.kept} of {self.changed} changed weights{share} differ after rounding to {self.dtype}"
