"""The edit as an artifact: what changed between two models, small, and exact both ways.

`edit.safetensors` holds, for each tensor that changed, the numbers of its changed rows and the bits that changed in them:

    NAME.rows   (n,) int64        NAME.bits   (n, bytes a row) uint8 = bits of the base XOR bits of the edited row

The same bits take the base to the edited model and back, so undoing an edit is no arithmetic and has no rounding. The
file's metadata names the weights on both sides by checksum; an edit is refused by all others. Edits stack: the edited side
of one is the base of the next, and they come off in the opposite order.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lightning_neuralgate.edit.weight_files import TensorPlace, WeightFiles
from lightning_neuralgate.errors import DeltaFormatError, WeightFilesError
from lightning_neuralgate.runtime.files import atomic_write

DELTA_NAME = "edit.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ChangedRows:
    """The rows of one tensor that an edit changed.

    Attributes:
        dtype: the tensor's type, as safetensors writes it.
        shape: the tensor's shape; a row is one entry of its first dimension.
        rows: (n,) int64, ascending.
        bits: (n, bytes a row) uint8, what to XOR a row with.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: np.ndarray
    bits: np.ndarray

    def __post_init__(self) -> None:
        count = self.shape[0] if self.shape else 1
        ascending = self.rows.ndim == 1 and bool((np.diff(self.rows) > 0).all())
        if (
            self.rows.dtype != np.int64
            or not ascending
            or (self.rows.size and not 0 <= self.rows[0] <= self.rows[-1] < count)
        ):
            raise DeltaFormatError(f"row numbers must be ascending int64 in 0 to {count - 1}")
        if self.bits.dtype != np.uint8 or self.bits.ndim != 2 or len(self.bits) != len(self.rows):
            raise DeltaFormatError(
                f"expected bits for {len(self.rows)} rows, found {self.bits.dtype} {self.bits.shape}"
            )


@dataclass(frozen=True)
class EditDelta:
    """What an edit changed in a model's weights.

    Attributes:
        tensors: name, as in the model's files -> its changed rows.
        base: checksum of the weights before the edit.
        edited: checksum of the weights after it.
        provenance: where the edit comes from (gate, settings, versions), as strings.
    """

    tensors: Mapping[str, ChangedRows]
    base: str
    edited: str
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def between(cls, base: str | Path, edited: str | Path, provenance: Mapping[str, str] | None = None) -> EditDelta:
        """What changed from one model folder to another.

        Raises:
            WeightFilesError: the folders do not hold the same tensors, in the same types and shapes.
        """
        before, after = WeightFiles(base), WeightFiles(edited)
        _check_same_tensors(before, after)
        tensors = {}
        for name, place in after.tensors.items():
            bits = place.bytes_by_row() ^ before.tensors[name].bytes_by_row()
            rows = np.flatnonzero(bits.any(1))
            if rows.size:
                tensors[name] = ChangedRows(place.dtype, place.shape, rows, np.asarray(bits[rows]))
        return cls(tensors, before.checksum, after.checksum, dict(provenance or {}))

    def apply(self, folder: str | Path, out: str | Path) -> None:
        """Write to `out` the model in `folder` with the edit made.

        Raises:
            WeightFilesError: the weights there are not the base of this edit, or `out` exists.
        """
        self._flip(Path(folder), Path(out), self.base, self.edited)

    def revert(self, folder: str | Path, out: str | Path) -> None:
        """Write to `out` the model in `folder` with the edit taken back.

        Raises:
            WeightFilesError: the weights there are not what this edit leads to, or `out` exists.
        """
        self._flip(Path(folder), Path(out), self.edited, self.base)

    def _flip(self, folder: Path, out: Path, expected: str, result: str) -> None:
        if out.exists():
            raise WeightFilesError(f"{out} exists; give a folder that does not, so that nothing is overwritten")
        if out.resolve().is_relative_to(folder.resolve()):
            raise WeightFilesError(f"{out} lies inside {folder}; give a folder beside it")
        self._check_fits(WeightFiles(folder), expected)
        with atomic_write(out) as draft:
            # an edit's file in there tells of that folder, not of the new one
            try:
                shutil.copytree(folder, draft, ignore=shutil.ignore_patterns(DELTA_NAME))
            except (shutil.Error, OSError) as error:
                raise WeightFilesError(f"{folder} cannot be copied: {error}") from error
            files = WeightFiles(draft)
            for name, changed in self.tensors.items():
                place = files.tensors[name]
                place.file.chmod(0o644)  # what comes from a hub's cache may be read-only
                if changed.bits.size:
                    rows = place.bytes_by_row("r+")
                    rows[changed.rows] ^= changed.bits
                    rows.flush()  # type: ignore[attr-defined]
            if files.checksum != result:
                raise WeightFilesError(
                    f"the edit does not lead from {folder} to the weights it names; its file is broken"
                )

    def _check_fits(self, files: WeightFiles, expected: str) -> None:
        if files.checksum == expected:
            for name, changed in self.tensors.items():
                place = files.tensors.get(name)
                width = changed.bits.shape[1]
                if place is None or (place.shape, place.bytes_by_row().shape[1]) != (changed.shape, width):
                    raise DeltaFormatError(f"the edit's rows of '{name}' are not those of the weights it names")
            return
        side, other = ("edited", "base") if expected == self.edited else ("base", "edited")
        found = f"the weights in {files.folder} ({files.checksum[:16]}) are not the edit's {side} ({expected[:16]})"
        if files.checksum in (self.base, self.edited):
            raise WeightFilesError(f"{found}, but its {other} side: there is nothing to be done")
        raise WeightFilesError(
            f"{found}. If another edit was made on top, take that one back first; if this is another base, the edit has to "
            "be made again on it"
        )

    def save(self, file: str | Path) -> None:
        """Write the edit as one safetensors file."""
        arrays = {}
        for name, changed in self.tensors.items():
            arrays[f"{name}.rows"], arrays[f"{name}.bits"] = changed.rows, changed.bits
        described = {name: {"dtype": t.dtype, "shape": list(t.shape)} for name, t in self.tensors.items()}
        metadata = {
            "format_version": str(FORMAT_VERSION),
            "base": self.base,
            "edited": self.edited,
            "tensors": json.dumps(described),
            "provenance": json.dumps(dict(self.provenance)),
        }
        with atomic_write(Path(file)) as draft:
            save_file(arrays, draft, metadata)
            draft.chmod(0o644)

    @classmethod
    def load(cls, file: str | Path) -> EditDelta:
        """Read an edit.

        Raises:
            DeltaFormatError: there is no such file, or it holds no edit.
        """
        try:
            with safe_open(file, "np") as stream:
                metadata = stream.metadata() or {}
                if metadata.get("format_version") != str(FORMAT_VERSION):
                    raise DeltaFormatError(
                        f"its format_version is {metadata.get('format_version')}, this release reads {FORMAT_VERSION}"
                    )
                tensors = {
                    name: ChangedRows(
                        entry["dtype"],
                        tuple(entry["shape"]),
                        stream.get_tensor(f"{name}.rows"),
                        stream.get_tensor(f"{name}.bits"),
                    )
                    for name, entry in json.loads(metadata["tensors"]).items()
                }
                provenance = json.loads(metadata["provenance"])
                if not isinstance(provenance, dict):
                    raise DeltaFormatError("its provenance is no mapping")
                return cls(tensors, metadata["base"], metadata["edited"], provenance)
        except FileNotFoundError as error:
            raise DeltaFormatError(f"there is no edit at {file}") from error
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DeltaFormatError(f"{file} holds no edit: {error}") from error

    def described(self) -> Iterator[str]:
        """What the edit is, line by line."""
        yield f"from {self.base[:16]} to {self.edited[:16]}"
        for name, t in self.tensors.items():
            yield f"{name} ({t.dtype}, {' x '.join(map(str, t.shape)) or 'scalar'}): {len(t.rows)} rows changed"
        if not self.tensors:
            yield "nothing changed"
        for key, value in self.provenance.items():
            yield f"{key}: {value}"


def _check_same_tensors(before: WeightFiles, after: WeightFiles) -> None:
    def kind(place: TensorPlace | None) -> Any:
        return "missing" if place is None else f"{place.dtype} {list(place.shape)}"

    names = sorted({*before.tensors, *after.tensors})
    pairs = {name: (kind(before.tensors.get(name)), kind(after.tensors.get(name))) for name in names}
    differing = [f"{name}: {base}, then {edited}" for name, (base, edited) in pairs.items() if base != edited]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise WeightFilesError(
            f"{before.folder} and {after.folder} do not hold the same tensors: {'; '.join(differing[:5])}{more}. An "
            "edit file needs both in one type: save the base with save_pretrained as it was loaded for the edit, and "
            "compare with that"
        )
