"""Where the questions of each task come from, and who judges, as plain options that can stand in a YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.judges.chat import Ask, ChatEndpoint, LocalChat
from lightning_neuralgate.judges.llm import LlmJudge, LlmScorer
from lightning_neuralgate.kept_replies import KeptReplies
from lightning_neuralgate.metrics.functional import RefusalVariant
from lightning_neuralgate.tasks.benchmarks.mllmguard import read_mllmguard
from lightning_neuralgate.tasks.benchmarks.mme import read_mme
from lightning_neuralgate.tasks.benchmarks.pope import read_pope
from lightning_neuralgate.tasks.benchmarks.privacy_pair import privacy_pair_items
from lightning_neuralgate.tasks.benchmarks.scienceqa import read_scienceqa
from lightning_neuralgate.tasks.broken import BrokenItems
from lightning_neuralgate.tasks.item import TaskItem
from lightning_neuralgate.tasks.place import Place
from lightning_neuralgate.tasks.questions import Source
from lightning_neuralgate.tasks.verdicts import (
    ChatVerdicts,
    GuardScores,
    LeakRule,
    ListedRefusals,
    Refusals,
    StoredScores,
    Unparsed,
    judged_refusals,
)

_DEFAULT_LIST: RefusalVariant = "prefix"
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


@dataclass(frozen=True)
class JudgeOptions:
    """Who says which answers refuse: a keyword list, or a judge that reads whole answers.

    Attributes:
        kind: list (`--variant` names it), reader (this library's judge on SmolLM2), classifier (of Hugging Face), llm
            (a chat model behind an endpoint of OpenAI's protocol), or local (a chat model in this process).
        name: the folder or hub name of the classifier or the local chat model, or the chat model's name at its endpoint.
        refusing: labels of the classifier that mean a refusal; known for LibrAI/longformer-action-ro.
        url: the endpoint, such as http://localhost:8000/v1.
        key_variable: environment variable with the endpoint's key; null for none.
        workers: replies of the endpoint to wait for at once.
        device: where a classifier or a local chat model computes.
        unparsed: where a chat model's reply holds no clear verdict: error, or neither (the answer counts neither as one that
            refuses nor as one that answers; such replies are counted and listed).
        cache: keep a chat model's replies as they come, and take those that it gave before.
        guard_scores: JSON lines {"item_id": ..., "answer": ..., "score": 0 to 3 or a judge's text}: what a judge gave the
            answers to MLLMGuard of one run. A list of two such files where two runs are compared, in their order.
        guard: let the chat model, llm or local, score MLLMGuard's answers, too.
    """

    kind: Literal["list", "reader", "classifier", "llm", "local"] = "list"
    name: str | None = None
    refusing: Sequence[str] | None = None
    url: str | None = None
    key_variable: str | None = "OPENAI_API_KEY"
    workers: int = 4
    device: str = "cpu"
    unparsed: Unparsed = "neither"
    cache: bool = True
    guard_scores: Sequence[Path] | Path | None = None
    guard: bool = False

    def refusals(self, variant: RefusalVariant) -> Refusals:
        """Who says which answers refuse.

        Args:
            variant: the keyword list, for the kind `list`.

        Raises:
            DataFormatError: what the kind needs is not named; a keyword list is named for another kind.
            JudgeError: the endpoint cannot be asked.
        """
        if self.kind != "list" and variant != _DEFAULT_LIST:
            raise DataFormatError(
                f"--variant {variant} names a keyword list, and --judge.kind {self.kind} is none; leave one out"
            )
        if self.kind == "reader":
            from lightning_neuralgate.judges.probe import RefusalJudge

            return judged_refusals(RefusalJudge.load(), "judge 'reader'")
        if self.kind == "classifier":
            from lightning_neuralgate.judges.classifier import RefusalClassifier

            if self.name is None:
                raise DataFormatError("name the classifier: --judge.name FOLDER or hub name")
            classifier = RefusalClassifier.load(self.name, self.refusing, self.device)
            return judged_refusals(classifier, f"classifier '{self.name}'")
        if self.kind in ("llm", "local"):
            ask, workers = self._ask()
            return ChatVerdicts(LlmJudge(ask, workers=workers), f"chat model '{self.name}'", self.unparsed)
        return ListedRefusals(variant)

    def guards(self, runs: int = 1) -> list[GuardScores]:
        """Who scores the answers of each run to MLLMGuard.

        Args:
            runs: number of runs.

        Raises:
            DataFormatError: there are not as many files with scores as runs, or one cannot be read; the chat model is not
                named; there are both files and a chat model.
            JudgeError: the endpoint cannot be asked.
        """
        if self.guard and self.guard_scores is not None:
            raise DataFormatError(
                "--judge.guard_scores has the scores and --judge.guard asks for them; give one of the two"
            )
        if self.guard_scores is not None:
            files = [self.guard_scores] if isinstance(self.guard_scores, Path) else list(self.guard_scores)
            if len(files) != runs:
                raise DataFormatError(
                    f"scores belong to the answers of one run: there are {runs} runs and {len(files)} files in "
                    f"--judge.guard_scores; give {'one file' if runs == 1 else f'a list of {runs}, in the order of the runs'}"
                )
            return [StoredScores(file) for file in files]
        if self.guard:
            ask, workers = self._ask()
            return [ChatVerdicts(LlmScorer(ask, workers), f"scores of chat model '{self.name}'")] * runs
        return [LeakRule()] * runs

    def _ask(self) -> tuple[Ask, int]:
        """The chat model, and how many threads may ask it at once."""
        if self.kind == "local":
            if self.name is None:
                raise DataFormatError("name the chat model: --judge.name FOLDER or hub name")
            ask: ChatEndpoint | LocalChat = _local_chat(self.name, self.device)
        elif self.url is None or self.name is None:
            raise DataFormatError(
                "a chat model as judge needs --judge.url and --judge.name, or --judge.kind local and --judge.name"
            )
        else:
            ask = ChatEndpoint(self.url, self.name, self.key_variable)
        workers = 1 if self.kind == "local" else self.workers
        return (KeptReplies(ask, ask.identity) if self.cache else ask), workers


Beside = RefusalVariant | Literal["reader"] | JudgeOptions
"""A further judge of refusals: a keyword list, this library's judge, or one by its options."""


def refusals_beside(judges: Sequence[Beside], variant: RefusalVariant) -> list[Refusals]:
    """Further judges of which answers refuse; arguments and errors as in `JudgeOptions.refusals`."""
    options = [
        one if isinstance(one, JudgeOptions) else JudgeOptions("reader") if one == "reader" else one for one in judges
    ]
    return [
        one.refusals(variant if one.kind == "list" else _DEFAULT_LIST)
        if isinstance(one, JudgeOptions)
        else ListedRefusals(one)
        for one in options
    ]


@lru_cache(maxsize=1)
def _local_chat(name: str, device: str) -> LocalChat:
    """The same model for refusals and for scores."""
    return LocalChat.load(name, device)


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
