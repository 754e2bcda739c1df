"""Where the questions of each task come from, and who judges, as plain options that can stand in a YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.tasks.benchmarks.mllmguard import read_mllmguard
from lightning_neuralgate.tasks.benchmarks.mme import read_mme
from lightning_neuralgate.tasks.benchmarks.pope import read_pope
from lightning_neuralgate.tasks.benchmarks.privacy_pair import privacy_pair_items
from lightning_neuralgate.tasks.benchmarks.scienceqa import read_scienceqa
from lightning_neuralgate.tasks.item import BrokenItems, Place, TaskItem
from lightning_neuralgate.tasks.questions import Source

TASKS = ("privacy_pair", "pope", "mme", "scienceqa", "mllmguard")
ALL = "all"


@dataclass(frozen=True)
class TaskSources:
    """Where the questions of each task come from: files, folders, or data sets on the hub.

    Data sets are `owner/name`, `owner/name:split` or `owner/name/config:split`. PrivacyPair is named by `--data`.

    Attributes:
        pope: POPE's JSON lines or parquet.
        pope_images: folder of the pictures that POPE's JSON lines name.
        pope_categories: of random, popular, adversarial; the paper uses random.
        mme: MME's folder, or parquet.
        scienceqa: ScienceQA as parquet or JSON lines.
        scienceqa_images: folder of the pictures that JSON lines name.
        mllmguard: folder with MLLMGuard's dimensions.
    """

    pope: str | None = None
    pope_images: Path | None = None
    pope_categories: Sequence[str] = ("random",)
    mme: str | None = None
    scienceqa: str | None = None
    scienceqa_images: Path | None = None
    mllmguard: str | None = None

    def read(self, tasks: Sequence[str], data: DataOptions) -> dict[str, Source]:
        """What reads the questions of some tasks.

        Args:
            tasks: their names.
            data: where PrivacyPair is.

        Raises:
            DataFormatError: a task whose source is not named.
        """
        sources: dict[str, Source] = {}
        for task in tasks:
            named = getattr(self, task, None)
            if task == "privacy_pair":
                data.check()
                sources[task] = partial(_privacy_pair, data)
            elif named is None:
                raise DataFormatError(f"say where '{task}' is: --sources.{task} FOLDER, or --mini for a drawn one")
            elif task == "pope":
                categories = tuple(self.pope_categories)
                sources[task] = partial(read_pope, named, images=self.pope_images, categories=categories)
            elif task == "mme":
                sources[task] = partial(read_mme, named)
            elif task == "scienceqa":
                sources[task] = partial(read_scienceqa, named, images=self.scienceqa_images)
            else:
                sources[task] = partial(read_mllmguard, named)
        return sources


def _privacy_pair(data: DataOptions, broken: BrokenItems) -> Iterator[TaskItem]:
    def placed(error: DataFormatError) -> None:
        found = re.match(r"(?P<file>.+?), (?P<record>line \d+): (?P<reason>.*)", str(error), re.DOTALL)
        broken.add(Place(found["file"], found["record"]).broken(found["reason"]) if found else error)

    return privacy_pair_items(data.read(placed)._asdict(), data.images(), broken)


def mini_sources(folder: Path) -> tuple[TaskSources, DataOptions]:
    """The sources of what `render_mini` has drawn into a folder."""
    named = {task: str(folder / task) for task in TASKS if task != "privacy_pair"}
    sources = replace(TaskSources(), pope_images=folder / "pope" / "images", **named)  # type: ignore[arg-type]
    return sources, DataOptions(folder=folder / "privacy_pair")


def task_names(named: str | Sequence[str]) -> list[str]:
    """Tasks out of a list or of words with commas between them; `all` stands for all.

    Raises:
        DataFormatError: an unknown task, or none.

    Example:
        >>> task_names("pope,mme")
        ['pope', 'mme']
    """
    words = named.split(",") if isinstance(named, str) else list(named)
    names = [word.strip() for word in words if word.strip()]
    if names == [ALL]:
        return list(TASKS)
    if unknown := [name for name in names if name not in TASKS]:
        raise DataFormatError(f"there is no task '{unknown[0]}'; there are {', '.join(TASKS)}, or {ALL}")
    if not names:
        raise DataFormatError(f"name the tasks: {', '.join(TASKS)}, or {ALL}")
    return list(dict.fromkeys(names))
