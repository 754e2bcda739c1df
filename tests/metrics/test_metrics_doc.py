"""docs/metrics.md: its code runs, every name in it exists, and it names every metric."""

from __future__ import annotations

import doctest
import re
from inspect import isfunction
from pathlib import Path
from typing import Any, get_args

from torchmetrics import Metric

from lightning_neuralgate import metrics
from lightning_neuralgate.evaluation import statistics
from lightning_neuralgate.judges import classifier
from lightning_neuralgate.judges.chat import ChatEndpoint
from lightning_neuralgate.judges.classifier import RefusalClassifier
from lightning_neuralgate.judges.llm import LlmJudge
from lightning_neuralgate.metrics import functional

DOC = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
FIRST, JUDGES, TESTS = re.findall(r"```python\n(.*?)```", DOC, flags=re.DOTALL)


def test_examples_print_the_shown_output() -> None:
    example = doctest.DocTestParser().get_doctest(FIRST, {}, "metrics.md", None, None)
    assert doctest.DocTestRunner().run(example) == (0, 3)


def test_judge_examples_run(monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr(RefusalClassifier, "load", classmethod(lambda cls, name: name))
    monkeypatch.setattr(ChatEndpoint, "__call__", lambda self, prompt: "full_refusal")
    names: dict[str, Any] = {"queries": ["What?"] * 2, "answers": ["No.", ""]}
    exec(JUDGES, names)
    assert names["classifier"] in classifier.REFUSING_LABELS
    assert isinstance(names["judge"], LlmJudge)
    assert names["judge"](names["queries"], names["answers"]) == [True, False]


def test_interval_and_test_examples_run() -> None:
    names = {"answers_before": ["Yes."] * 4, "answers_after": ["No."] * 4, "labels": ["yes", "no"] * 2}
    exec(TESTS, names)
    difference = statistics.paired_differences(names["before"], names["after"])["accuracy"]  # type: ignore[arg-type]
    assert (difference.first, difference.second, difference.p_value) == (0.5, 0.5, 1)


def test_names_in_the_table_exist() -> None:
    table = DOC.partition("```python")[0]
    named = set(re.findall(r"`([a-z_]+|[A-Z]\w+)`", table)) - {"CohenKappa", "lightning_neuralgate"}
    assert named >= {"pope", "MME", "judge_score", "utility_average"}
    assert {name for name in named if not hasattr(functional, name) and not hasattr(metrics, name)} == set()


def test_every_metric_is_named() -> None:
    words = set(re.findall(r"\b\w+\b", DOC))
    classes = {name for name in metrics.__all__ if isinstance(getattr(metrics, name), type(metrics.POPE))}
    assert {name for name in classes if issubclass(getattr(metrics, name), Metric)} <= words
    per_answer = {"is_answer", "leaks", "leaked_share", "normalize_value", "says_value"}
    functions = {name for name in functional.__all__ if isfunction(getattr(functional, name))}
    assert functions - per_answer <= words
    assert {f"| `{variant}` |" in DOC for variant in get_args(functional.RefusalVariant)} == {True}
