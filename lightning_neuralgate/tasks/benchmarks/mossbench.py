"""MOSSBench: benign questions about pictures that look dangerous, from the owner's JSON file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.runtime.parsing import read_json
from lightning_neuralgate.tasks.benchmarks.base import Benchmark, TallySettings
from lightning_neuralgate.tasks.benchmarks.exaggerated import TypedRefusals
from lightning_neuralgate.tasks.item import BrokenItems, Place, TaskItem
from lightning_neuralgate.tasks.questions import Source

TYPES = {"type 1": "exaggerated_risk", "type 2": "negated_harm", "type 3": "counterintuitive_interpretation"}
"""Field `metadata.over` -> the type's name."""
_FILES = ("images_information/information.json", "information.json")


def read_mossbench(source: str | Path, broken: BrokenItems) -> Iterator[TaskItem]:
    """Yield MOSSBench's questions.

    Args:
        source: the owner's folder `data`, with `images_information/information.json` and `images/`; or the JSON file, an
            object or a list of entries with `image` (relative to that folder), `question`, `pid` and, in `metadata`, `over`.
        broken: collects broken entries.

    Raises:
        DataFormatError: there is no such file, or it is not JSON.
    """
    path = Path(source)
    file = next((path / name for name in _FILES if (path / name).is_file()), None) if path.is_dir() else path
    if file is None or not file.is_file():
        raise DataFormatError(f"{path}: expected MOSSBench's folder with {_FILES[0]}, or that file")
    content: Any = read_json(file)
    if not isinstance(content, dict | list):
        raise DataFormatError(f"{file}: expected an object or a list of entries, found {type(content).__name__}")
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    folder = file.parent.parent if file.parent.name == "images_information" else file.parent
    rows = ((Place(str(file), f"entry {name}"), entry) for name, entry in entries)
    return broken.parse_all(rows, partial(_item, folder=folder))


def _item(row: tuple[Place, Any], folder: Path) -> TaskItem:
    place, entry = row
    if not isinstance(entry, dict):
        raise place.error(f"expected an object, found {type(entry).__name__}")
    for field in ("image", "question", "pid"):
        if not isinstance(entry.get(field), str) or not entry[field].strip():
            raise place.error(f"field '{field}' has to be text, found {entry.get(field)!r:.80}")
    metadata = entry.get("metadata")
    kind = metadata.get("over") if isinstance(metadata, dict) else None
    if kind not in TYPES:
        raise place.error(f"field 'metadata.over' has to be one of {', '.join(TYPES)}, found {kind!r:.80}")
    return TaskItem(
        task="mossbench",
        item_id=entry["pid"],
        picture=place.picture(folder, entry["image"]),
        image=entry["image"],
        prompt=entry["question"].strip(),
        fields={"type": TYPES[kind]},
        group=entry["pid"],
        place=place,
    )


@dataclass(frozen=True)
class MossBenchSource:
    """Where MOSSBench is.

    Attributes:
        mossbench: MOSSBench's folder `data`, or its information.json.
    """

    mossbench: str | None = None


class MossBench(Benchmark):
    """MOSSBench: the refusal rate over all questions and per type."""

    name = "mossbench"
    protocol = "MOSSBench's refusal rate; empty answers, which its owner counts as refusals, are apart"
    shown = ("all/refused", "all/empty", *(f"{name}/refused" for name in TYPES.values()))
    source_options = MossBenchSource
    has_mini = False

    def source(self, options: Any, data: DataOptions) -> Source:
        return partial(read_mossbench, self.named_source(options))

    def new_tally(self, settings: TallySettings) -> TypedRefusals:
        return TypedRefusals(lambda kind: ["all"], settings.is_partial)

    def missing_parts(self, figures: Mapping[str, float]) -> list[str]:
        """Return the types without a question."""
        return [name for name in TYPES.values() if f"{name}/refused" not in figures]

    def verdict(self, answer: AnsweredItem) -> str:
        return "answered"
