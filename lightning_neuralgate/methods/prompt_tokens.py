"""Which tokens a forward pass holds, for steerings that depend on the whole prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.hf.decoder import find_hf_model
from lightning_neuralgate.prefix_cache.verify import WholeSequences


class PromptTokens(NamedTuple):
    """The tokens of one forward pass.

    Attributes:
        is_start: whether the pass begins at the first token; False for the further tokens of an answer.
        real: (B, Q) bool, False at padding.
        text: (B, Q) bool, True at the text behind the last picture; all real tokens where there is no picture.
        picture: (B, Q) bool, True at the tokens of pictures.
    """

    is_start: bool
    real: Tensor
    text: Tensor
    picture: Tensor

    def last(self, values: Tensor) -> Tensor:
        """Return the values, (B, Q, d), at each row's last real token, (B, d)."""
        columns = torch.arange(self.real.shape[1], device=self.real.device)
        last = torch.where(self.real, columns, 0).amax(1)
        return values[torch.arange(len(values), device=values.device), last.to(values.device)]


class TokenWatch(WholeSequences):
    """A forward pre-hook of a Hugging Face model that notes the tokens of each pass."""

    def __init__(self) -> None:
        self._tokens: PromptTokens | None = None

    @property
    def tokens(self) -> PromptTokens:
        """The tokens of the last pass that began.

        Raises:
            UnsupportedSetupError: there was none; a part of the model was called on its own.
        """
        if self._tokens is None:
            raise UnsupportedSetupError(
                "this steering needs the tokens of the prompt: call the whole model, not its decoder"
            )
        return self._tokens

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        sequence = kwargs["inputs_embeds"] if ids is None else ids
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        shape = sequence.shape[:2]
        real = torch.ones(shape, dtype=torch.bool, device=sequence.device)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask[:, -shape[1] :].bool()
        config: Any = getattr(module, "config", None)
        token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        picture = torch.zeros_like(real) if ids is None or token is None else (ids == token) & real
        text = real & ~(picture.flip(1).cumsum(1).flip(1) > 0)
        self._tokens = PromptTokens(cache is None or not cache.get_seq_length(), real, text, picture)


@contextmanager
def watched_tokens(model: nn.Module) -> Iterator[TokenWatch]:
    """Note the tokens of each forward pass in the block; prompts then run whole, and not in shared parts."""
    watch = TokenWatch()
    handle = find_hf_model(model).register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield watch
    finally:
        handle.remove()


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of values, (B, Q, d), over the tokens of a mask, (B, Q), per row, (B, d); 0 without tokens."""
    weights = mask.to(values.device, values.dtype)[..., None]
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1)
