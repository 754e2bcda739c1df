"""Load folders and tokenizers from the disk or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_neuralgate.errors import ModelLayoutError, NeuralGateError
from lightning_neuralgate.runtime.secrets import without_secrets


def refuse_missing_path(source: str | Path, error: type[NeuralGateError]) -> None:
    """Refuse a source that is written like a local path if there is nothing at it, instead of requesting it from the hub.

    Anyone may own a repository of that name, and its content would be taken for the user's own.

    Args:
        source: a folder or the id of a hub repository.
        error: the exception class to raise.
    """
    text, path = str(source), Path(source)
    if path.exists():
        return
    parts = text.split("/")
    in_folder = len(parts) == 2 and Path(parts[0]).is_dir()
    if len(parts) > 2 or text.startswith((".", "~", "/")) or "\\" in text or not all(parts) or in_folder:
        way_out = (
            f"although there is a folder '{parts[0]}'; correct the path, or, for the hub repository of that name, "
            f"download it (hf download {source}) and name its folder"
            if in_folder
            else "and a hub repository is named owner/name; correct the path"
        )
        raise error(f"there is no folder '{source}' in {Path.cwd()}, {way_out}")


def local_folder(source: str | Path, error: type[NeuralGateError], only: Sequence[str] | None = None) -> Path:
    """Return a local folder as it is, or download a hub repository into the hub's cache, with a warning that names it.

    Args:
        source: a folder, `~` is expanded, or the id of a hub repository, `owner/name`.
        error: the exception class to raise if it is neither, or looks like a local path that does not exist.
        only: patterns of the files to download; all of them by default.
    """
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    refuse_missing_path(source, error)
    if "/" not in str(source):
        raise error(f"there is no folder '{source}' in {Path.cwd()}; name a folder, or a hub repository as owner/name")
    from lightning.pytorch.utilities import rank_zero_warn  # importing lightning takes seconds

    rank_zero_warn(f"there is no folder '{source}' in {Path.cwd()}: loading the hub repository of that name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=None if only is None else list(only)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as cause:
        raise error(
            f"'{source}' is neither a folder nor a reachable hub repository: {without_secrets(str(cause))}"
        ) from cause


def load_tokenizer(source: str | Path) -> Any:
    """Load the tokenizer of a folder or hub repository.

    Raises:
        ModelLayoutError: there is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    refuse_missing_path(source, ModelLayoutError)
    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # a damaged file can raise anything
        raise ModelLayoutError(
            f"'{source}' has no tokenizer that can be loaded: {without_secrets(str(error) or repr(error))}; give the model's "
            "folder or hub repository"
        ) from error
