"""Store of located records on disk, one file per batch of records, from which an interrupted locator resumes."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_neuralgate.runtime.files import atomic_write


class RecordStore:
    """Feature vectors of located records in a folder, under a key of all that they depend on.

    Args:
        folder: the folder; created with the first record.

    Example:
        >>> import tempfile, torch
        >>> store = RecordStore(Path(tempfile.mkdtemp()))
        >>> key = store.key({"lr": 0.5}, {"input_ids": torch.tensor([[1, 2]]), "role": ["benign"]})
        >>> store.load(key) is None
        True
        >>> store.save(key, {"passport-3": {10: torch.ones(2)}}, {"reuse": True})
        >>> store.load(key)
        ({'passport-3': {10: tensor([1., 1.])}}, {'reuse': True})
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(settings: Mapping[str, Any], batch: Mapping[str, Any]) -> str:
        """Return a checksum of settings and of a batch: of the bits of its tensors, and of all else as text."""
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

    def save(self, key: str, vectors: Mapping[str, Mapping[int, Tensor]], notes: Mapping[str, Any]) -> None:
        """Save the vectors of records, record -> layer -> (d,), with JSON-serializable notes."""
        named = {f"{layer}/{record}": m for record, layers in vectors.items() for layer, m in layers.items()}
        with atomic_write(self._file(key)) as draft:
            tensors, text = {name: m.contiguous() for name, m in named.items()}, json.dumps(notes)
            save_file(tensors, draft, {"notes": text, "checksum": self.key({"notes": text}, tensors)})

    def load(self, key: str) -> tuple[dict[str, dict[int, Tensor]], dict[str, Any]] | None:
        """Return the vectors and notes saved under a key; None if there are none, or not as they were saved."""
        file = self._file(key)
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as content:
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
                text, checksum = content.metadata()["notes"], content.metadata()["checksum"]
            if checksum != self.key({"notes": text}, tensors):
                raise ValueError("its content is not what was written")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            warnings.warn(f"{file} is damaged ({error}), so its records are located again", stacklevel=2)
            return None
        vectors: dict[str, dict[int, Tensor]] = {}
        for name, value in tensors.items():
            layer, _, record = name.partition("/")
            vectors.setdefault(record, {})[int(layer)] = value
        return vectors, dict(json.loads(text))
