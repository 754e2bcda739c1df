"""What is shared on the Hugging Face hub: files of an edited model, an edit or a gate, and their checksums.

Only safetensors, JSON, text and tokenizer files are shared. Files with pickles or code are neither uploaded nor downloaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from lightning_neuralgate.edit.delta import DELTA_NAME, FULL_DELTA_NAME, EditDelta
from lightning_neuralgate.edit.dial import DIAL_NAME
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.errors import HubError
from lightning_neuralgate.hf.model_files import refuse_other_weights
from lightning_neuralgate.runtime.parsing import read_json_object

Kind = Literal["model", "edit", "gate"]

CARD_NAME, RECORD_NAME = "README.md", "reproduce.json"
FORMAT_VERSION = 1
SHARED_FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model*.safetensors.index.json", "processor_config.json",
    "*preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.json", "chat_template.jinja",
    "additional_chat_templates/*.jinja", DELTA_NAME, FULL_DELTA_NAME, DIAL_NAME, "gate.safetensors", "gate.json",
    "columns.safetensors", "columns.json", "LICENSE", "NOTICE",
)  # fmt: skip
"""Glob patterns of the files that are shared, apart from the model card and `reproduce.json`."""
_FILES_OF: Mapping[Kind, tuple[str, ...]] = {
    "model": SHARED_FILES,
    "edit": (DELTA_NAME, FULL_DELTA_NAME, DIAL_NAME, "LICENSE", "NOTICE"),
    "gate": ("gate.*", "columns.*", "LICENSE", "NOTICE"),
}


@dataclass(frozen=True)
class SharedFolder:
    """A model, an edit or a gate whose files are complete and belong together.

    Attributes:
        kind: `model`, `edit` or `gate`.
        files: name in the repository -> file.
        checksums: of the content: `weights` of a model, `base` and `edited` of an edit, `gate` and `columns` of gates.
        made: how an edit or gate was made, as its own file records it.
        model: name of the model that a gate was located in; empty if unknown.
        left_out: names of files in the folder that are not shared.
    """

    kind: Kind
    files: Mapping[str, Path]
    checksums: Mapping[str, str]
    made: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    left_out: tuple[str, ...] = ()

    @classmethod
    def read(cls, source: Path) -> SharedFolder:
        """Read a folder with an edited model, a folder with a gate, or an edit file.

        Raises:
            HubError: it is none of these, or its edit file belongs to other weights.
            WeightFilesError, DeltaFormatError, GateFormatError: a file is damaged.
        """
        kind = _kind_of(source)
        folder = source.parent if source.is_file() else source
        found = {
            file.relative_to(folder).as_posix(): file
            for file in ([source] if source.is_file() else sorted(folder.rglob("*")))
            if file.is_file()
        }
        names = [DELTA_NAME] if source.is_file() else [name for name in found if is_shared(name, _FILES_OF[kind])]
        files = {name: source if source.is_file() else found[name] for name in names}
        expected = {CARD_NAME, RECORD_NAME}  # written anew
        left_out = tuple(name for name in found if found[name] not in files.values() and name not in expected)
        if kind == "gate":
            checksums, made, model = _read_gates(folder)
            return cls(kind, files, checksums, made, model, left_out)
        checksums, made = {}, {}
        if kind == "model":
            refuse_other_weights(folder)
            checksums = {"weights": WeightFiles(folder).checksum}
        if DELTA_NAME in files:
            delta = EditDelta.load(files[DELTA_NAME])
            if checksums.get("weights", delta.edited) != delta.edited:
                raise HubError(
                    f"{files[DELTA_NAME]} belongs to other weights ({delta.edited[:16]}) than those in that folder "
                    f"({checksums['weights'][:16]}); make it again with `neuralgate diff --out`, or move it away"
                )
            checksums |= {"base": delta.base, "edited": delta.edited}
            made = dict(delta.provenance)
        return cls(kind, files, checksums, made, left_out=left_out)


def _kind_of(source: Path) -> Kind:
    if source.is_file():
        return "edit"
    if (source / "config.json").is_file():
        return "model"
    if (source / "gate.json").is_file() or (source / "columns.json").is_file():
        return "gate"
    if (source / DELTA_NAME).is_file():
        return "edit"
    raise HubError(
        f"{source} is no folder with an edited model (config.json), a gate (gate.json) or an edit ({DELTA_NAME}), and no "
        "edit file; give what `neuralgate edit`, `locate` or `diff` has written"
    )


def _read_gates(folder: Path) -> tuple[dict[str, str], dict[str, Any], str]:
    from lightning_neuralgate.gate.columns import ColumnGate  # imported late: torch takes seconds
    from lightning_neuralgate.gate.neural_gate import NeuralGate

    checksums: dict[str, str] = {}
    made: dict[str, Any] = {}
    model = ""
    for name, kind in (("gate", NeuralGate), ("columns", ColumnGate)):
        if (folder / f"{name}.json").is_file():
            gate = kind.from_pretrained(folder)
            checksums[name] = gate.fingerprint
            subjects = {"subjects": list(gate.subjects)} if isinstance(gate, NeuralGate) else {}
            made[name] = {"layers": list(gate.layers), **subjects, "versions": gate.versions}
            model = gate.model.name
    return checksums, made, model


def is_shared(name: str, patterns: Iterable[str] = SHARED_FILES) -> bool:
    """Return whether a file, given by its path in a repository, is one that is shared.

    Example:
        >>> [is_shared(name) for name in ("model.safetensors", "pytorch_model.bin", "model/../../a.safetensors")]
        [True, False, False]
    """
    simple = "\\" not in name and ".." not in name.split("/") and not name.startswith("/")
    return simple and any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def file_sums(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each file's bytes by name."""
    sums = {}
    for name, file in sorted(files.items()):
        with file.open("rb") as content:
            sums[name] = hashlib.file_digest(content, "sha256").hexdigest()
    return sums


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `reproduce.json`."""
    content = json.dumps({"format_version": FORMAT_VERSION, **record}, indent=2, ensure_ascii=False)
    (folder / RECORD_NAME).write_text(content + "\n", encoding="utf-8")


def read_record(folder: Path, repo: str) -> dict[str, Any]:
    """Read the `reproduce.json` of a downloaded repository.

    Raises:
        HubError: there is none, or it cannot be used; the message names the field.
    """
    file = folder / RECORD_NAME
    if not file.is_file():
        raise HubError(
            f"the hub repository '{repo}' has no {RECORD_NAME}, so `neuralgate push` has not written it; download it with "
            f"`hf download {repo}`, which checks no checksums"
        )
    record = read_json_object(file, HubError, own=True, hint="push it again")
    if record.get("format_version") != FORMAT_VERSION:
        raise HubError(
            f"{file}: format_version is {record.get('format_version')!r:.80}, this release supports {FORMAT_VERSION}"
        )
    files = record.get("files")
    if not isinstance(files, dict) or not all(isinstance(sum_of_file, str) for sum_of_file in files.values()):
        raise HubError(f"{file}: files: expected names with checksums; push it again")
    if refused := [name for name in files if not is_shared(name)]:
        raise HubError(f"{file}: files: '{refused[0]:.80}' is no file that is shared; push it again")
    if not isinstance(record.get("checksums"), dict):
        raise HubError(f"{file}: checksums: expected a JSON object; push it again")
    return record


def check_sums(folder: Path, record: Mapping[str, Any], repo: str) -> None:
    """Check the downloaded files against the checksums in `reproduce.json`.

    Raises:
        HubError: naming the first file that is missing or differs.
    """
    for name, expected in sorted(record["files"].items()):
        file = folder / name
        if not file.is_file():
            raise HubError(f"the hub repository '{repo}' lacks {name}, which its {RECORD_NAME} lists; push it again")
        if file_sums({name: file})[name] != expected:
            raise HubError(
                f"{file} has another checksum than {RECORD_NAME} of '{repo}' lists: it was changed on the hub, or damaged on "
                "the way; delete that file and pull again, or give the --revision that was pushed"
            )
