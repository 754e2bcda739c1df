"""Project a finished edit away from the inputs that ordinary prompts use: W0 + (W - W0) P.

The same projection as `NeuralGateCallback(keep=...)`, but after the edit instead of in every step, so the edit cannot make up
for the part that is removed. It works for every edit of MLP output projections, whatever made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from lightning_neuralgate.edit.delta import DELTA_NAME, EditDelta, check_new_folder, copied_model
from lightning_neuralgate.edit.weight_files import TensorLocation, WeightFiles
from lightning_neuralgate.errors import GateMismatchError, UnsupportedSetupError
from lightning_neuralgate.gate.keys import InputCovariance, KeyProjector, check_strength


class ProjectedTensor(NamedTuple):
    """A weight whose change was projected.

    Attributes:
        name: its name in the model's files.
        kept: share of the change's squared norm that was kept; 0 for a bias.
        projector: the projection; None for a bias, whose change is removed, since it answers to every input.
    """

    name: str
    kept: float
    projector: KeyProjector | None


def project_edit(
    base: Path,
    edited: Path,
    out: Path,
    keep: InputCovariance,
    share: float | None = None,
    soft: float | None = None,
) -> list[ProjectedTensor]:
    """Write a copy of an edited model whose change is kept away from the inputs of `keep`, with its edit file.

    Args:
        base: folder of the unedited model, with the same dtypes.
        edited: folder of the edited model.
        out: output folder; must not exist.
        keep: inputs to keep the change away from, collected in the unedited model (`InputCovariance.check_fits`).
        share: hard projection, as in `InputCovariance.projector`.
        soft: soft projection.

    Returns:
        The changed weights. Empty if the models are the same; then nothing is written.

    Raises:
        WeightFilesError: the models do not have the same tensors, or `out` exists.
        GateMismatchError: the edit changed something else than MLP output projections of the layers in `keep`, or `keep` has
            another number of input directions.
        UnsupportedSetupError: a changed weight is not in floating point.
    """
    check_strength(share, soft)
    check_new_folder(edited, out)
    delta = EditDelta.between(base, edited)
    before, after = WeightFiles(base), WeightFiles(edited)
    layers = _layers_of(delta, after, keep)
    if not layers:
        return []
    projected = []
    with copied_model(edited, out) as draft:
        files = WeightFiles(draft)
        for name, layer in layers.items():
            original, weight = _read(before.tensors[name], name), _read(after.tensors[name], name)
            change = weight.float() - original.float()
            projector, new = None, torch.zeros_like(change)
            if change.ndim == 2:
                projector = keep.projector(layer, share, soft)
                if change.shape[1] != projector.size:
                    raise GateMismatchError(
                        f"'{name}' has {change.shape[1]} input directions, and layer {layer} of the input covariance has "
                        f"{projector.size}; collect it in this model"
                    )
                new = projector(change)
            _write(files.tensors[name], (original.float() + new).to(original.dtype))
            projected.append(ProjectedTensor(name, float((new.norm() / change.norm()) ** 2), projector))
        strength = f"share {share}" if soft is None else f"soft {soft}"
        file = edited / DELTA_NAME
        origin = dict(EditDelta.load(file).provenance) if file.is_file() else {}
        notes = {**origin, "projected": f"{keep.fingerprint}, {strength}"}
        EditDelta.between(base, draft, notes).save(draft / DELTA_NAME)
    return projected


def _layers_of(delta: EditDelta, files: WeightFiles, keep: InputCovariance) -> dict[str, int]:
    """Return the layer of each changed tensor; files and models differ in the first parts of a name."""
    found: dict[str, int] = {}
    for layer in keep.layers:
        for kind in ("weight", "bias"):
            parts = f"{keep.model.layers_path}.{layer}.{keep.model.projection}.{kind}".split(".")[::-1]
            needed = parts.index(str(layer)) + 1
            found |= dict.fromkeys(_most_alike(parts, delta.tensors, files.tensors, needed), layer)
    if others := sorted(set(delta.tensors) - set(found)):
        raise GateMismatchError(
            f"the edit changed {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}, and the input covariance "
            f"covers the MLP output projections of layers {keep.layers} alone; collect it with all layers of the edit"
        )
    return found


def _most_alike(
    parts: Sequence[str], changed: Mapping[str, object], names: Mapping[str, object], needed: int
) -> list[str]:
    """Return the changed names that, of all names, have the most last parts in common with `parts`, which is reversed."""

    def common(name: str) -> int:
        pairs = zip(parts, name.split(".")[::-1], strict=False)
        return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(parts), name.count(".") + 1))

    best = max(map(common, names))
    return [name for name in changed if common(name) == best] if best >= needed else []


def _read(location: TensorLocation, name: str) -> Tensor:
    with safe_open(location.file, "pt") as stream:
        tensor: Tensor = stream.get_tensor(name)
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
        raise UnsupportedSetupError(
            f"'{name}' is {location.dtype}, whose change cannot be projected; use a model in float32, bfloat16 or float16"
        )
    return tensor


def _write(location: TensorLocation, value: Tensor) -> None:
    location.file.chmod(0o644)  # files copied from a hub cache may be read-only
    rows = location.row_bytes("r+")
    rows[:] = value.contiguous().flatten().view(torch.uint8).numpy().reshape(rows.shape)
    rows.flush()  # type: ignore[attr-defined]  # with "r+" it is a memmap
