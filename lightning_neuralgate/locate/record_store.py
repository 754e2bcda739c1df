"""Located records on disk, one file a batch of them, so that a locator that was killed need not do them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import atomic_write


class RecordStore:
    """The feature vectors of located records, in a folder, each under a key of all that made it.

    Args:
        folder: the folder; made when the first record comes.

    Example:
        >>> import tempfile, torch
        >>> kept = RecordStore(Path(tempfile.mkdtemp()))
        >>> key = kept.key({"lr": 0.5}, {"input_ids": torch.tensor([[1, 2]]), "role": ["benign"]})
        >>> kept.recall(key) is None
        True
        >>> kept.keep(key, {"passport-3": {10: torch.ones(2)}}, {"reuse": True})
        >>> kept.recall(key)
        ({'passport-3': {10: tensor([1., 1.])}}, {'reuse': True})
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(settings: Mapping[str, Any], batch: Mapping[str, Any]) -> str:
        """Checksum of settings and of a batch: its tensors to the bit, all else as text."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, value in sorted(batch.items()):
            digest.update(name.encode())
            if isinstance(value, Tensor):
                value = value.detach().cpu().contiguous()
                digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
            else:
                digest.update(repr(value).encode())
        return digest.hexdigest()[:32]

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def keep(self, key: str, vectors: Mapping[str, Mapping[int, Tensor]], notes: Mapping[str, Any]) -> None:
        """Keep the vectors of records, record -> layer -> (d,), with some notes that JSON can hold."""
        named = {f"{layer}/{record}": m for record, layers in vectors.items() for layer, m in layers.items()}
        with atomic_write(self._file(key)) as draft:
            save_file({name: m.contiguous() for name, m in named.items()}, draft, {"notes": json.dumps(notes)})

    def recall(self, key: str) -> tuple[dict[str, dict[int, Tensor]], dict[str, Any]] | None:
        """Vectors and notes of what is kept under this key; None where there is nothing.

        Raises:
            DataFormatError: the file cannot be read.
        """
        file = self._file(key)
        if not file.is_file():
            return None
        try:
            vectors: dict[str, dict[int, Tensor]] = {}
            with safe_open(file, "pt") as content:
                for name in content.keys():  # noqa: SIM118
                    layer, _, record = name.partition("/")
                    vectors.setdefault(record, {})[int(layer)] = content.get_tensor(name)
                return vectors, dict(json.loads(content.metadata()["notes"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataFormatError(f"{file} holds no located records ({error}); delete it") from error
