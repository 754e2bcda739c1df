"""The weights of a Hugging Face folder as they lie on disk: which tensor is which bytes of which file.

An edit is taken back bit for bit, so it is applied to the files and not to a loaded model, whose way into memory and back
may rename, convert or reorder tensors. Nothing here needs more memory than one tensor.
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

import numpy as np

from lightning_neuralgate.errors import WeightFilesError

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_PATTERNS = ("*.safetensors", _INDEX)
"""The files in which weights are looked for."""
_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
}
_BYTES |= {"BOOL": 1}


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies.

    Attributes:
        file: the safetensors file.
        dtype: name of its type, as safetensors writes it (`F32`, `BF16`, ...).
        shape: its shape.
        begin: first byte in the file.
        end: byte after the last.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def rows(self) -> int:
        """Size of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    def bytes_by_row(self, mode: str = "r") -> np.ndarray:
        """The tensor's bytes, (rows, bytes a row), mapped from the file; with mode `r+`, what is written there stays."""
        width = (self.end - self.begin) // self.rows if self.rows else 0
        if not width:
            return np.empty((self.rows, 0), np.uint8)
        shape = (self.rows, width)
        return np.memmap(self.file, np.uint8, "r+" if mode == "r+" else "r", self.begin, shape)


class WeightFiles:
    """The safetensors weights of a Hugging Face folder, sharded or not.

    Args:
        folder: with `model.safetensors`, or `model.safetensors.index.json` and its shards.

    Raises:
        WeightFilesError: there are no safetensors weights, a shard is missing or leads out of the folder, or a file is
            broken.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tensors: Mapping[str, TensorPlace] = {
            name: place for file in self._files() for name, place in sorted(_header(file).items())
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
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            if not all(isinstance(name, str) for name in names):
                raise TypeError("a shard's name is no text")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise WeightFilesError(f"{index} is not an index of shards: {error!r}") from error
        for name in names:
            if Path(name).name != name or not (self.folder / name).is_file():
                raise WeightFilesError(f"{index} names the shard '{name}', which is no file of that folder")
        return [self.folder / name for name in names]

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over all tensors: names, types, shapes and bytes, in the order of names, however they are sharded."""
        digest = hashlib.sha256()
        for name, place in sorted(self.tensors.items()):
            digest.update(f"{name}\0{place.dtype}\0{list(place.shape)}\0".encode())
            digest.update(np.ascontiguousarray(place.bytes_by_row()).data)
        return digest.hexdigest()


def _header(file: Path) -> dict[str, TensorPlace]:
    """What a safetensors file says of its tensors: eight bytes with the length of a JSON text, and that text.

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if 8 + length > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(length))
        places = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            shape, offsets = tuple(entry["shape"]), tuple(entry["data_offsets"])
            if not all(type(number) is int and number >= 0 for number in (*shape, *offsets)):
                raise ValueError(f"the shape or place of '{name}' is no list of counts")
            begin, end = (8 + length + offset for offset in offsets)
            count, size_of = math.prod(shape), _BYTES.get(entry["dtype"])
            fills = (
                (end - begin) == count * size_of if size_of else not shape or not count or (end - begin) % shape[0] == 0
            )
            if not 8 + length <= begin <= end <= size or not fills or (not count and end > begin):
                raise ValueError(f"'{name}' lies outside the file or does not fill its shape")
            places[name] = TensorPlace(file, entry["dtype"], shape, begin, end)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightFilesError(f"{file} is no whole safetensors file: {error}") from error
    return places
