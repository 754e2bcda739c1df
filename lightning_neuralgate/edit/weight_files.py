"""Byte-level access to the safetensors weights of a Hugging Face model folder.

Edits must revert bit for bit, so they are applied to the files. Loading and saving a model could rename, convert or reorder
tensors. Memory use is at most one tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from lightning_neuralgate.errors import WeightFilesError
from lightning_neuralgate.runtime.parsing import read_json_object

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_PATTERNS = ("*.safetensors", _INDEX)
"""Glob patterns of the weight files."""
_LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""
_ITEM_SIZES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}
"""Bytes per element. Tensors of any other dtype are only checked to divide into rows."""


@dataclass(frozen=True)
class TensorLocation:
    """Location of a tensor on disk.

    Attributes:
        file: the safetensors file.
        dtype: dtype in safetensors notation (`F32`, `BF16`, ...).
        shape: the tensor's shape.
        start: offset of the first byte in the file.
        stop: offset after the last byte.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Size of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    def row_bytes(self, mode: Literal["r", "r+"] = "r") -> np.ndarray:
        """Return the tensor's bytes as a memory map, (rows, bytes per row); mode `r+` writes changes to the file."""
        width = (self.stop - self.start) // self.rows if self.rows else 0
        if not width:
            return np.empty((self.rows, 0), np.uint8)
        return np.memmap(self.file, np.uint8, mode, self.start, (self.rows, width))


class WeightFiles:
    """The safetensors weights of a Hugging Face folder, sharded or not.

    Args:
        folder: folder with `model.safetensors`, or with `model.safetensors.index.json` and its shards.

    Raises:
        WeightFilesError: the folder has no safetensors weights, a shard is missing or outside the folder, or a file is
            corrupt.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tensors: Mapping[str, TensorLocation] = {
            name: location for file in self._files() for name, location in sorted(_read_header(file).items())
        }

    def _files(self) -> list[Path]:
        index = self.folder / _INDEX
        if (self.folder / _SINGLE).is_file():
            return [self.folder / _SINGLE]
        if not index.is_file():
            raise WeightFilesError(
                f"{self.folder} has neither {_SINGLE} nor {_INDEX}; give the folder of a model that was saved with "
                "save_pretrained"
            )
        content = read_json_object(index, WeightFilesError, own=True, hint="save the model again")
        try:
            names = sorted(set(content["weight_map"].values()))
            if not all(isinstance(name, str) for name in names):
                raise TypeError("a shard's name is not a string")
        except (KeyError, AttributeError, TypeError) as error:
            raise WeightFilesError(f"{index} is not an index of shards: {error!r}; save the model again") from error
        for name in names:
            if not _is_file_name(self.folder, name):
                raise WeightFilesError(f"{index} names the shard '{name}', which is not a file in that folder; add it")
        return [self.folder / name for name in names]

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of all tensors, sorted by name; sharding does not matter."""
        digest = hashlib.sha256()
        for name, location in sorted(self.tensors.items()):
            digest.update(f"{name}\0{location.dtype}\0{list(location.shape)}\0".encode())
            digest.update(np.ascontiguousarray(location.row_bytes()).data)
        return digest.hexdigest()


def _is_file_name(folder: Path, name: str) -> bool:
    try:
        return Path(name).name == name and (folder / name).is_file()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def _read_header(file: Path) -> dict[str, TensorLocation]:
    """Read a safetensors header: eight bytes with the length of a JSON text, and that text.

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size - 8, _LONGEST_HEADER):
                raise ValueError(
                    f"the header of {length} bytes is longer than the file or than {_LONGEST_HEADER} bytes"
                )
            header = json.loads(stream.read(length))
        locations = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            shape, offsets = tuple(entry["shape"]), tuple(entry["data_offsets"])
            if not all(type(number) is int and number >= 0 for number in (*shape, *offsets)):
                raise ValueError(f"shape or offsets of '{name}' are not lists of non-negative integers")
            start, stop = (8 + length + offset for offset in offsets)
            count, item_size = math.prod(shape), _ITEM_SIZES.get(entry["dtype"])
            if item_size:
                fits = stop - start == count * item_size
            else:
                fits = not shape or not count or (stop - start) % shape[0] == 0
            if not 8 + length <= start <= stop <= size or not fits or (not count and stop > start):
                raise ValueError(f"'{name}' lies outside the file or does not match its shape")
            locations[name] = TensorLocation(file, entry["dtype"], shape, start, stop)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightFilesError(
            f"{file} is not a complete safetensors file: {error}; save or download it again"
        ) from error
    return locations
