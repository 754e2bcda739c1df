"""Choice of refusal judge and MLLMGuard scorer as plain options, from the command line or a YAML file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.judges.chat import CachedChat, ChatEndpoint, ChatModel, LocalChat
from lightning_neuralgate.judges.llm import LlmJudge, LlmScorer
from lightning_neuralgate.metrics.functional import RefusalVariant
from lightning_neuralgate.runtime.text import printable
from lightning_neuralgate.tasks.verdicts import (
    ChatModelJudge,
    GuardScorer,
    KeywordListJudge,
    LeakScorer,
    NamedRefusalJudge,
    StoredScorer,
    Unparsed,
    named_refusal_judge,
)

_DEFAULT_LIST: RefusalVariant = "prefix"


@dataclass(frozen=True)
class JudgeOptions:
    """Choice of a refusal judge: a keyword list, or a judge that reads full answers.

    Attributes:
        kind: list (a keyword list, see `--variant`), reader (this library's judge on SmolLM2), classifier (any Hugging Face
            sequence classifier), llm (a chat model behind an OpenAI-compatible endpoint), or local (a chat model in this
            process). An endpoint receives every question and answer, leaked values included, which is printed first.
        name: folder or hub name of the classifier or local chat model, or the chat model's name at its endpoint.
        refusing: labels of the classifier that mean a refusal; known for LibrAI/longformer-action-ro.
        url: address of the endpoint, such as http://localhost:8000/v1.
        key_variable: environment variable with the endpoint's key; null for none.
        workers: number of concurrent requests to the endpoint.
        device: device of a classifier or local chat model.
        unparsed: handling of a chat model's reply without a clear verdict: error, or neither (the answer counts neither as
            refusing nor as answering; such replies are counted and listed).
        cache: store a chat model's replies in the answer cache as they arrive, and reuse earlier ones.
        guard_scores: JSON lines {"item_id": ..., "answer": ..., "score": 0 to 3 or a judge's reply} with a judge's scores of
            one run's answers to MLLMGuard. A list of two such files where two runs are compared, in their order.
        guard: score MLLMGuard's answers with the chat model (llm or local) as well.
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

    def refusal_judge(self, variant: RefusalVariant) -> NamedRefusalJudge:
        """Build the refusal judge.

        Args:
            variant: the keyword list, for the kind `list`.

        Raises:
            DataFormatError: an option that the kind needs is missing, or a keyword list is named for another kind.
            JudgeError: the endpoint's address or key is missing or wrong.
        """
        if self.kind != "list" and variant != _DEFAULT_LIST:
            raise DataFormatError(
                f"--variant {variant} names a keyword list, but --judge.kind {self.kind} uses none; leave one out"
            )
        if self.kind == "reader":
            from lightning_neuralgate.judges.probe import RefusalJudge

            return named_refusal_judge(RefusalJudge.load(), "judge 'reader'")
        if self.kind == "classifier":
            from lightning_neuralgate.judges.classifier import RefusalClassifier

            if self.name is None:
                raise DataFormatError("name the classifier: --judge.name FOLDER or hub name")
            classifier = RefusalClassifier.load(self.name, self.refusing, self.device)
            return named_refusal_judge(classifier, f"classifier '{self.name}'")
        if self.kind in ("llm", "local"):
            chat_model, workers = self._chat_model()
            return ChatModelJudge(LlmJudge(chat_model, workers=workers), f"chat model '{self.name}'", self.unparsed)
        return KeywordListJudge(variant)

    def guard_scorers(self, runs: int = 1) -> list[GuardScorer]:
        """Build one scorer of MLLMGuard's answers per run.

        Raises:
            DataFormatError: the numbers of score files and runs differ, a file cannot be read, the chat model is not named,
                or both files and a chat model are given.
            JudgeError: the endpoint's address or key is missing or wrong.
        """
        if self.guard and self.guard_scores is not None:
            raise DataFormatError(
                "--judge.guard_scores reads scores and --judge.guard lets the chat model give them; give one of the two"
            )
        if self.guard_scores is not None:
            files = [self.guard_scores] if isinstance(self.guard_scores, Path) else list(self.guard_scores)
            if len(files) != runs:
                raise DataFormatError(
                    f"scores belong to the answers of one run: there are {runs} runs and {len(files)} files in "
                    f"--judge.guard_scores; give {'one file' if runs == 1 else f'a list of {runs}, in the order of the runs'}"
                )
            return [StoredScorer(file) for file in files]
        if self.guard:
            chat_model, workers = self._chat_model()
            scorer = LlmScorer(chat_model, workers)
            return [ChatModelJudge(scorer, f"scores of chat model '{self.name}'") for _ in range(runs)]
        return [LeakScorer()] * runs

    def _chat_model(self) -> tuple[ChatModel, int]:
        """Return the chat model and the number of threads that may call it."""
        chat_model: ChatEndpoint | LocalChat
        if self.kind == "local":
            if self.name is None:
                raise DataFormatError("name the chat model: --judge.name FOLDER or hub name")
            chat_model, workers = _load_local_chat(self.name, self.device), 1
        elif self.url is None or self.name is None:
            raise DataFormatError(
                "a chat model as judge needs --judge.url and --judge.name, or --judge.kind local and --judge.name"
            )
        else:
            chat_model, workers = ChatEndpoint(self.url, self.name, self.key_variable), self.workers
            _announce(chat_model.url, self.name)
        return (CachedChat(chat_model, chat_model.identity) if self.cache else chat_model), workers


ExtraJudge = RefusalVariant | Literal["reader"] | JudgeOptions
"""A further refusal judge: a keyword list, this library's judge, or one by its options."""


def extra_refusal_judges(judges: Sequence[ExtraJudge], variant: RefusalVariant) -> list[NamedRefusalJudge]:
    """Build further refusal judges; arguments and errors as in `JudgeOptions.refusal_judge`."""
    return [_extra_judge(judge, variant) for judge in judges]


def _extra_judge(judge: ExtraJudge, variant: RefusalVariant) -> NamedRefusalJudge:
    if isinstance(judge, str) and judge != "reader":
        return KeywordListJudge(judge)
    options = judge if isinstance(judge, JudgeOptions) else JudgeOptions("reader")
    return options.refusal_judge(variant if options.kind == "list" else _DEFAULT_LIST)


@lru_cache
def _announce(url: str, name: str) -> None:
    """Print, once and before the first request, where answers are sent."""
    print(
        f"The judge '{printable(name, single_line=True)}' at {url} receives every question it judges with the complete "
        "answer, private values that the answer leaks included.",
        file=sys.stderr,
    )


@lru_cache(maxsize=1)
def _load_local_chat(name: str, device: str) -> LocalChat:
    """Load a chat model once for refusals and MLLMGuard scores, because it may not fit in memory twice."""
    return LocalChat.load(name, device)
