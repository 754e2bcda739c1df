"""`ModelArtifact`: tensors that were computed in one model and fit no other, saved as one safetensors and one JSON file."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_neuralgate.errors import NeuralGateError
from lightning_neuralgate.hf.hub import local_folder
from lightning_neuralgate.hf.identity import ModelIdentity, check_same_model
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.parsing import read_json_object

FORMAT_VERSION = 1


class ModelArtifact(ABC):
    """Base class of gates and input covariances: saving, loading, and the check of the model.

    Attributes:
        model: identity of the model that it belongs to.
        versions: library versions with which it was made.
    """

    _kind: ClassVar[str]
    """What it is, for messages, such as "gate"."""
    file_names: ClassVar[tuple[str, str]]
    """Names of its safetensors file, the tensors, and of its JSON file, everything else."""
    _error: ClassVar[type[NeuralGateError]]
    """Exception class of files that cannot be read."""
    _made: ClassVar[str]
    """How it is made, as a participle ("located")."""
    _make: ClassVar[str]
    """The same as an infinitive ("locate")."""
    _origin: ClassVar[str]
    """What makes one, for the message about missing files."""

    model: ModelIdentity
    versions: dict[str, str]

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, contiguous and on the CPU, in the order of the fingerprint."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Return all else as JSON-serializable entries, without model and versions."""

    @classmethod
    @abstractmethod
    def _from_saved(cls, tensors: Mapping[str, Tensor], model: ModelIdentity, config: Mapping[str, Any]) -> Self:
        """Return what was saved as these tensors and this JSON object. May raise a KeyError, TypeError or ValueError."""

    def check_fits(self, module: nn.Module) -> None:
        """Check that it was made in this model. With sharded weights every process has to call this.

        Raises:
            GateMismatchError: it was not; the message names each property that differs, with both values.
        """
        check_same_model(self.model, module, self._kind, self._made, self._make)

    @property
    def fingerprint(self) -> str:
        """Short checksum of the tensors and of the model that they belong to."""
        identity = {name: value for name, value in asdict(self.model).items() if name != "name"}
        digest = hashlib.sha256(json.dumps(self._fingerprinted(identity), sort_keys=True).encode())
        for name, values in self._tensors().items():
            digest.update(name.encode() + values.numpy().tobytes())
        return digest.hexdigest()[:16]

    def _fingerprinted(self, identity: dict[str, Any]) -> Any:
        """Return what the fingerprint covers in addition to the tensors, JSON-serializable."""
        return identity

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the two files to a folder, which is created if needed."""
        folder = Path(folder)
        config = {
            "format_version": FORMAT_VERSION,
            "model": asdict(self.model),
            **self._settings(),
            "versions": self.versions,
            "fingerprint": self.fingerprint,
        }
        tensors_file, config_file = (folder / name for name in self.file_names)
        with atomic_write(tensors_file) as draft:
            save_file(self._tensors(), draft)
        with atomic_write(config_file) as draft:
            draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Load from a folder or a hub repository.

        Raises:
            GateFormatError, KeysFormatError: a file is missing or damaged, or the two files do not belong together.
        """
        folder = local_folder(source, cls._error, cls.file_names)
        tensors_file, config_file = (folder / name for name in cls.file_names)
        for file in (tensors_file, config_file):
            if not file.is_file():
                raise cls._error(f"no {cls._kind} in {folder}: {file.name} is missing; {cls._origin}")
        config = read_json_object(config_file, cls._error, own=True, hint=f"{cls._make} again")
        try:
            if config["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version {config['format_version']}, this version reads {FORMAT_VERSION}")
            artifact = cls._from_saved(load_file(tensors_file), ModelIdentity(**config["model"]), config)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"no entry {error}" if isinstance(error, KeyError) else error
            raise cls._error(
                f"{tensors_file} and {config_file.name} cannot be read as {cls._kind}: {reason}; {cls._make} again"
            ) from error
        if config.get("fingerprint") != artifact.fingerprint:
            raise cls._error(
                f"{tensors_file} and {config_file.name} are not of the same {cls._kind} (checksums differ); {cls._make} again"
            )
        return artifact
