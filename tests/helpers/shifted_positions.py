from __future__ import annotations

from typing import Any


def shift_cached_positions(model: Any) -> None:
    """Shift the positions of all passes of several tokens that continue a cache, as an unsupported model might."""
    decoder = model.model.language_model
    forward = decoder.forward

    def shifted(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None and past_key_values.get_seq_length() and kwargs["inputs_embeds"].shape[1] > 1:
            kwargs["position_ids"] = kwargs["position_ids"] + 3
        return forward(*args, past_key_values=past_key_values, **kwargs)

    decoder.forward = shifted
