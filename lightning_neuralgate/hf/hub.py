"""Load folders and tokenizers from the disk or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_neuralgate.errors import ModelLayoutError, NeuralGateError


def local_folder(source: str | Path, error: type[NeuralGateError], only: Sequence[str] | None = None) -> Path:
    """Return a local folder as it is, or download a hub repository into the hub's cache.

    Args:
        source: a folder or the id of a hub repository.
        error: the exception class to raise if it is neither.
        only: patterns of the files to download; all of them by default.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=None if only is None else list(only)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as cause:
        raise error(f"'{source}' is neither a folder nor a reachable hub repository: {cause}") from cause


def load_tokenizer(source: str | Path) -> Any:
    """Load the tokenizer of a folder or hub repository.

    Raises:
        ModelLayoutError: there is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # a damaged file can raise anything
        raise ModelLayoutError(
            f"'{source}' has no tokenizer that can be loaded: {str(error) or repr(error)}; give the model's folder or hub "
            "repository"
        ) from error
