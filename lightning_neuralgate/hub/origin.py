"""How a shared model, edit or gate was made: base model, command, seeds, settings and versions, without local paths."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from lightning_neuralgate.models.loading import EMBEDDED_MODELS

_LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the embedded models are built from."""
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


class Origin(NamedTuple):
    """How something was made.

    Attributes:
        base: name of the base model for people; empty if unknown.
        base_id: its id on the hub, for metadata; empty if it has none.
        command: the command that makes it again; empty if no results were given.
        seeds: seeds of the run.
        settings: settings of the run.
        versions: versions of the run.
    """

    base: str
    base_id: str
    command: str
    seeds: list[int]
    settings: dict[str, Any]
    versions: dict[str, str]


def origin_of(results: Mapping[str, Any] | None, base_model: str = "") -> Origin:
    """Return the origin of what a run made.

    Args:
        results: content of the `results.json` of `neuralgate demo`, if there is one.
        base_model: name or hub id of the base model; by default that of the results.
    """
    results = results or {}
    settings = {name: without_folders(value) for name, value in (results.get("settings") or {}).items()}
    base = str(without_folders(base_model or settings.get("model", "")))
    base_id = _LANGUAGE_MODEL if base in EMBEDDED_MODELS else base if _REPOSITORY.fullmatch(base) else ""
    seeds = list(results["seeds"] if "seeds" in results else [results["seed"]] if "seed" in results else [])
    command = demo_command(settings, seeds, results.get("precision")) if settings and seeds else ""
    return Origin(base, base_id, command, seeds, settings, dict(results.get("versions") or {}))


def without_folders(value: Any) -> Any:
    """Reduce local paths in settings to the name of the file or folder, since a path can give away who its owner is.

    Names of hub repositories stay.

    Example:
        >>> without_folders(["/home/me/visa.yaml", "passport", "llava-hf/llava-1.5-7b-hf"])
        ['visa.yaml', 'passport', 'llava-hf/llava-1.5-7b-hf']
    """
    if isinstance(value, Mapping):
        return {name: without_folders(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(inner) for inner in value]
    if not isinstance(value, str) or not ("/" in value or "\\" in value):
        return value
    if _REPOSITORY.fullmatch(value) and not value.startswith(".") and not Path(value).exists():
        return value
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1]


def demo_command(settings: Mapping[str, Any], seeds: list[int], precision: str | None = None) -> str:
    """Return the `neuralgate demo` command with these settings, as far as they differ from the defaults.

    Args:
        settings: settings of the run.
        seeds: its seeds, consecutive.
        precision: the precision that `auto` stood for.

    Example:
        >>> print(demo_command({"model": "smol-llava", "epochs": 2, "unseen": ["bank_card"]}, [3]))
        neuralgate demo --seed 3 --settings.epochs 2 --settings.unseen '["bank_card"]'
    """
    from lightning_neuralgate.demo.experiment import EditSettings  # imported late: torch takes seconds

    defaults = json.loads(json.dumps(asdict(EditSettings())))  # tuples become lists, as in the file
    chosen = {name: value for name, value in settings.items() if name not in defaults or value != defaults[name]}
    if precision is not None:
        chosen["precision"] = precision
    words = ["neuralgate", "demo", "--seed", str(seeds[0]), *(["--seeds", str(len(seeds))] if len(seeds) > 1 else [])]
    for name, value in chosen.items():
        words += [f"--settings.{name}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)
