"""Edit deltas: the rows that an edit changed, in a small file that can be applied and reverted exactly.

For each changed tensor, `edit.safetensors` contains the indices of its changed rows and the XOR of their bytes:

    NAME.rows   (n,) int64        NAME.bits   (n, bytes per row) uint8 = base row XOR edited row

The same XOR converts the base to the edited model and back, so reverting involves no rounding. The file's metadata has the
checksums of the base and the edited weights; a delta applies to no others. Deltas can be stacked: the edited weights of one
are the base of the next, and they are reverted in the opposite order.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lightning_neuralgate.edit.dial import DIAL_NAME
from lightning_neuralgate.edit.weight_files import TensorLocation, WeightFiles
from lightning_neuralgate.errors import DeltaFormatError, WeightFilesError
from lightning_neuralgate.hf.model_files import DELTA_NAME, refuse_other_weights
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.written import MANIFEST_NAME

if TYPE_CHECKING:
    from torch import Tensor

FULL_DELTA_NAME = "full_edit.safetensors"
"""The edit before the dial, next to the dialled one."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ChangedRows:
    """The rows of one tensor that an edit changed.

    Attributes:
        dtype: the tensor's dtype in safetensors notation (`F32`, `BF16`, ...).
        shape: the tensor's shape; rows are indexed by its first dimension.
        rows: row indices, (n,) int64, ascending.
        bits: bytes to XOR each row with, (n, bytes per row) uint8.
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
            raise DeltaFormatError(f"row indices must be ascending int64 from 0 to {count - 1}")
        if self.bits.dtype != np.uint8 or self.bits.ndim != 2 or len(self.bits) != len(self.rows):
            raise DeltaFormatError(
                f"expected bits for {len(self.rows)} rows, found {self.bits.dtype} {self.bits.shape}"
            )

    def base_and_edited(self, edited: np.ndarray, name: str) -> tuple[Tensor, Tensor]:
        """Return the changed rows before and after the edit, (n, elements per row), from an edited tensor's bytes.

        Args:
            edited: (rows, bytes per row), as `TensorLocation.row_bytes` returns them.
            name: the tensor's name, for the error.

        Raises:
            DeltaFormatError: the tensor is not floating-point.
        """
        import torch  # imported late: takes seconds

        kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        if self.dtype not in kinds:
            raise DeltaFormatError(
                f"'{name}' is {self.dtype}, and only a floating-point edit can be scaled or swapped; use scale 1"
            )
        after = np.ascontiguousarray(edited[self.rows])
        base, full = (torch.from_numpy(rows.copy()).view(kinds[self.dtype]) for rows in (after ^ self.bits, after))
        return base, full

    def scale_rows(self, edited: np.ndarray, scale: float, name: str) -> None:
        """Replace the rows W of an edited tensor's bytes, (rows, bytes per row), by W0 + scale (W - W0)."""
        import torch

        if not self.rows.size:
            return
        base, full = self.base_and_edited(edited, name)
        wide = torch.float64 if full.dtype == torch.float64 else torch.float32
        scaled = base.to(wide) + scale * (full.to(wide) - base.to(wide))
        edited[self.rows] = scaled.to(full.dtype).view(torch.uint8).numpy()
        edited.flush()  # type: ignore[attr-defined]  # with "r+" it is a memmap


@dataclass(frozen=True)
class EditDelta:
    """The changes of an edit to a model's weights.

    Attributes:
        tensors: tensor name as in the model's files -> its changed rows.
        base: checksum of the weights before the edit.
        edited: checksum of the weights after the edit.
        provenance: origin of the edit (gate, settings, versions), as strings.
    """

    tensors: Mapping[str, ChangedRows]
    base: str
    edited: str
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def between(cls, base: str | Path, edited: str | Path, provenance: Mapping[str, str] | None = None) -> EditDelta:
        """Compute the changes from one model folder to another.

        Raises:
            WeightFilesError: the folders do not have the same tensors with the same dtypes and shapes, or other weights
                would be loaded from them.
        """
        for folder in (base, edited):
            refuse_other_weights(Path(folder))
        before, after = WeightFiles(base), WeightFiles(edited)
        _check_same_tensors(before, after)
        tensors = {}
        for name, location in after.tensors.items():
            bits = location.row_bytes() ^ before.tensors[name].row_bytes()
            rows = np.flatnonzero(bits.any(1))
            if rows.size:
                tensors[name] = ChangedRows(location.dtype, location.shape, rows, np.asarray(bits[rows]))
        return cls(tensors, before.checksum, after.checksum, dict(provenance or {}))

    def apply(self, folder: str | Path, out: str | Path, scale: float = 1.0) -> None:
        """Copy the base model in `folder` to `out` and apply the edit there.

        Args:
            folder: the base model.
            out: the new folder.
            scale: share c of the edit: the changed rows become W0 + c (W - W0), computed in float32 (float64 for F64), and
                `out` gets an edit file of its own. 1 applies the edit exactly.

        Raises:
            WeightFilesError: the weights in `folder` are not the edit's base, or `out` exists.
            DeltaFormatError: a scale other than 1 for a tensor that is not floating-point.
        """
        self._copy_and_xor(Path(folder), Path(out), self.base, self.edited, scale)

    def revert(self, folder: str | Path, out: str | Path) -> None:
        """Copy the edited model in `folder` to `out` and revert the edit there.

        Raises:
            WeightFilesError: the weights in `folder` are not the edited ones, or `out` exists.
        """
        self._copy_and_xor(Path(folder), Path(out), self.edited, self.base)

    def _copy_and_xor(self, folder: Path, out: Path, expected: str, result: str, scale: float = 1.0) -> None:
        check_new_folder(folder, out)
        refuse_other_weights(folder)
        self.check_fits(WeightFiles(folder), expected)
        with copied_model(folder, out) as draft:
            files = WeightFiles(draft)
            for name, changed in self.tensors.items():
                location = files.tensors[name]
                location.file.chmod(0o644)  # files copied from a hub cache may be read-only
                if changed.bits.size:
                    rows = location.row_bytes("r+")
                    rows[changed.rows] ^= changed.bits
                    rows.flush()  # type: ignore[attr-defined]  # with "r+" it is a memmap
            if files.checksum != result:
                raise WeightFilesError(
                    f"the edit applied to {folder} does not give the checksum in the edit file ({result[:16]}): the edit "
                    "file is corrupt; make the edit again"
                )
            if scale != 1:
                for name, changed in self.tensors.items():
                    changed.scale_rows(files.tensors[name].row_bytes("r+"), scale, name)
                scaled = EditDelta.between(folder, draft, {**self.provenance, "scale": str(scale)})
                scaled.save(draft / DELTA_NAME)

    def check_fits(self, files: WeightFiles, expected: str) -> None:
        """Check that weight files are those on one side of the edit.

        Args:
            files: the files.
            expected: `base` or `edited`.

        Raises:
            WeightFilesError: they have another checksum.
            DeltaFormatError: the edit file does not match the tensors.
        """
        if files.checksum == expected:
            for name, changed in self.tensors.items():
                location = files.tensors.get(name)
                width = changed.bits.shape[1]
                if location is None or (location.shape, location.row_bytes().shape[1]) != (changed.shape, width):
                    raise DeltaFormatError(
                        f"the edit's rows of '{name}' do not match that tensor in {files.folder}; make the edit again"
                    )
            return
        side, other_side = ("edited", "base") if expected == self.edited else ("base", "edited")
        mismatch = (
            f"the weights in {files.folder} (checksum {files.checksum[:16]}) are not the edit's {side} weights "
            f"({expected[:16]})"
        )
        if files.checksum in (self.base, self.edited):
            raise WeightFilesError(f"{mismatch}, but its {other_side} weights: there is nothing to be done")
        raise WeightFilesError(
            f"{mismatch}. If another edit was applied on top, revert that one first; for another base model, make the edit "
            "again on it"
        )

    def save(self, file: str | Path) -> None:
        """Write the delta to a safetensors file.

        Raises:
            DeltaFormatError: there is another file, which is not an edit delta.
        """
        if Path(file).exists():
            try:
                EditDelta.load(file)
            except DeltaFormatError as error:
                raise DeltaFormatError(
                    f"{file} would be replaced, but is not an edit delta; give another file"
                ) from error
        arrays = {}
        for name, changed in self.tensors.items():
            arrays[f"{name}.rows"], arrays[f"{name}.bits"] = changed.rows, changed.bits
        layouts = {name: {"dtype": t.dtype, "shape": list(t.shape)} for name, t in self.tensors.items()}
        metadata = {
            "format_version": str(FORMAT_VERSION),
            "base": self.base,
            "edited": self.edited,
            "tensors": json.dumps(layouts),
            "provenance": json.dumps(dict(self.provenance)),
        }
        with atomic_write(Path(file)) as draft:
            save_file(arrays, draft, metadata)
            draft.chmod(0o644)

    @classmethod
    def load(cls, file: str | Path) -> EditDelta:
        """Read a delta from a safetensors file.

        Raises:
            DeltaFormatError: the file does not exist or is not an edit delta.
        """
        try:
            with safe_open(file, "np") as stream:
                metadata = stream.metadata() or {}
                if metadata.get("format_version") != str(FORMAT_VERSION):
                    raise DeltaFormatError(
                        f"its format_version is {metadata.get('format_version')}, this release supports {FORMAT_VERSION}"
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
                    raise DeltaFormatError("its provenance is not a JSON object")
                return cls(tensors, metadata["base"], metadata["edited"], provenance)
        except FileNotFoundError as error:
            raise DeltaFormatError(f"{file} does not exist; give the {DELTA_NAME} of an edit") from error
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DeltaFormatError(f"{file} is not an edit delta: {error}; give the {DELTA_NAME} of an edit") from error

    def described(self) -> Iterator[str]:
        """Yield a description of the edit, line by line."""
        yield f"from {self.base[:16]} to {self.edited[:16]}"
        for name, t in self.tensors.items():
            yield f"{name} ({t.dtype}, {' x '.join(map(str, t.shape)) or 'scalar'}): {len(t.rows)} rows changed"
        if not self.tensors:
            yield "nothing changed"
        for key, value in self.provenance.items():
            yield f"{key}: {value}"


def check_new_folder(folder: Path, out: Path) -> None:
    """Check that a changed copy of a model folder can be written to `out`.

    Raises:
        WeightFilesError: `out` exists, or lies inside `folder`.
    """
    if out.exists():
        raise WeightFilesError(f"{out} exists; give a new folder, so that nothing is overwritten")
    if out.resolve().is_relative_to(folder.resolve()):
        raise WeightFilesError(f"{out} lies inside {folder}; give a folder outside it")


@contextmanager
def copied_model(folder: Path, out: Path) -> Iterator[Path]:
    """Yield a draft with the files of a model folder, to be changed in the block; it becomes `out` at its end.

    Raises:
        WeightFilesError: the folder cannot be copied, or `out` exists at the end.
    """
    with atomic_write(out) as draft:
        # an edit file in the source folder describes that folder, not the new one
        try:
            described = (DELTA_NAME, FULL_DELTA_NAME, DIAL_NAME, MANIFEST_NAME)
            shutil.copytree(folder, draft, ignore=shutil.ignore_patterns(*described))
        except (shutil.Error, OSError) as error:
            raise WeightFilesError(f"{folder} cannot be copied: {error}") from error
        yield draft
        if out.exists():  # another process was faster
            raise WeightFilesError(f"{out} exists by now; give a new folder, so that nothing is overwritten")


def _check_same_tensors(before: WeightFiles, after: WeightFiles) -> None:
    def layout(location: TensorLocation | None) -> str:
        return "missing" if location is None else f"{location.dtype} {list(location.shape)}"

    names = sorted({*before.tensors, *after.tensors})
    pairs = {name: (layout(before.tensors.get(name)), layout(after.tensors.get(name))) for name in names}
    differing = [f"{name}: {base}, then {edited}" for name, (base, edited) in pairs.items() if base != edited]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise WeightFilesError(
            f"{before.folder} and {after.folder} do not have the same tensors: {'; '.join(differing[:5])}{more}. An edit "
            "delta needs the same dtypes: load the base as for the edit, save the base with save_pretrained, and compare "
            "with that folder"
        )
