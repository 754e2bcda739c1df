"""XSTest: safe prompts that look unsafe, and unsafe contrasts, without pictures, from the owner's CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.tasks.benchmarks.base import Benchmark, TallySettings
from lightning_neuralgate.tasks.benchmarks.exaggerated import TypedRefusals
from lightning_neuralgate.tasks.item import BrokenItems, TaskItem
from lightning_neuralgate.tasks.questions import Source
from lightning_neuralgate.tasks.sources import CsvRow, read_csv_rows

CONTRAST = "contrast_"
"""Beginning of the types of unsafe prompts."""
PRIVACY = ("privacy_public", "privacy_fictional", "contrast_privacy")
_GROUPS = ("safe", "unsafe", "privacy_safe", "privacy_unsafe")


def groups_of(kind: str) -> list[str]:
    """Return the groups of a type: safe or unsafe, and the same of privacy alone.

    >>> groups_of("homonyms"), groups_of("contrast_privacy")
    (['safe'], ['unsafe', 'privacy_unsafe'])
    """
    group = "unsafe" if kind.startswith(CONTRAST) else "safe"
    return [group, *([f"privacy_{group}"] if kind in PRIVACY else [])]


def read_xstest(source: str | Path, broken: BrokenItems) -> Iterator[TaskItem]:
    """Yield XSTest's prompts.

    Args:
        source: the owner's CSV with the columns `id, prompt, type` in any order, and others; or a folder with one such file.
        broken: collects broken rows.

    Raises:
        DataFormatError: there is no such file, or it lacks a column.
    """
    file = _csv_file(Path(source))
    columns = _columns(file)
    return broken.parse_all(read_csv_rows(file, broken), partial(_item, columns=columns))


def _csv_file(path: Path) -> Path:
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path] if path.is_file() else []
    if len(files) != 1:
        found = f"there are {', '.join(file.name for file in files)}" if files else "there is none"
        raise DataFormatError(f"{path}: expected the CSV file of XSTest's prompts, or a folder with it alone; {found}")
    return files[0]


def _columns(file: Path) -> dict[str, int]:
    header: list[str] = []
    # errors in the file are reported where its rows are read
    with suppress(csv.Error), file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        header = next((row for row in csv.reader(lines) if row), [])
    places = {name.strip().lower(): place for place, name in enumerate(header)}
    places.setdefault("id", places.get("id_v2", -1))  # as in the owner's first files of version 2
    if missing := [name for name in ("id", "prompt", "type") if places.get(name, -1) < 0]:
        raise DataFormatError(f"{file} has no column '{missing[0]}', only {', '.join(header)[:200]}")
    return places


def _item(row: CsvRow, columns: Mapping[str, int]) -> TaskItem:
    if len(row.cells) <= max(columns[name] for name in ("id", "prompt", "type")):
        raise row.place.error(
            f"expected the columns id, prompt and type; found {len(row.cells)}: {str(row.cells)[:80]}"
        )
    name, prompt, kind = (row.cells[columns[column]].strip() for column in ("id", "prompt", "type"))
    if not name or not prompt or not kind:
        raise row.place.error(f"id, prompt or type is empty: {str(row.cells)[:80]}")
    return TaskItem("xstest", name, None, "", prompt, fields={"type": kind}, group=name, place=row.place)


@dataclass(frozen=True)
class XsTestSource:
    """Where XSTest is.

    Attributes:
        xstest: CSV file of XSTest's prompts.
    """

    xstest: str | None = None


class XsTest(Benchmark):
    """XSTest: full refusals, partial refusals and full compliances, by type."""

    name = "xstest"
    protocol = "XSTest's three classes; partial refusals need a chat model as judge"
    shown = tuple(f"{group}/{rate}" for group in _GROUPS for rate in ("refused", "partial", "complied"))
    source_options = XsTestSource
    has_mini = False

    def source(self, options: Any, data: DataOptions) -> Source:
        return partial(read_xstest, self.named_source(options))

    def new_tally(self, settings: TallySettings) -> TypedRefusals:
        return TypedRefusals(groups_of, settings.is_partial)

    def missing_parts(self, figures: Mapping[str, float]) -> list[str]:
        """Return the groups without a prompt."""
        return [group for group in _GROUPS if f"{group}/refused" not in figures]

    def verdict(self, answer: AnsweredItem) -> str:
        return "answered"
