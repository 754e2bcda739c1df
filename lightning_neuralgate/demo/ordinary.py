"""Ordinary questions before and after an edit: small drawn benchmarks, and the benign ladder.

They are answered like those of `neuralgate eval`, so `neuralgate score` and `compare` take the folders `PART/MODEL`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lightning_neuralgate.demo.experiment import TRAINER_OPTIONS, Experiment
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.runtime.run_folder import UNFINISHED, remove_progress
from lightning_neuralgate.tasks.answer_store import read_answered
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS
from lightning_neuralgate.tasks.mini import render_mini
from lightning_neuralgate.tasks.options import mini_sources
from lightning_neuralgate.tasks.questions import TaskQuestions
from lightning_neuralgate.tasks.runner import Answering, answer_tasks
from lightning_neuralgate.tasks.scoring import score_run
from lightning_neuralgate.tasks.verdicts import KeywordListJudge, LeakScorer

LADDER = "over_refusal"
PARTS = {"utility": ("pope", "mme", "scienceqa", "mllmguard"), "ladder": (LADDER,)}
"""Key in `results.json` and name of the folder -> tasks."""
_QUESTIONS = "questions"
"""Folder of the drawn questions."""
_MAX_NEW_TOKENS = 20
_BATCH_SIZE = 24

Figures = dict[str, Any]
"""Figure -> value for the ladder, task -> figure -> value for the mini sets."""


def measured_parts(experiment: Experiment) -> list[str]:
    """Return the parts with questions, by the experiment's settings."""
    return [part for part in PARTS if _limit(experiment, part) != 0]


def draw_questions(experiment: Experiment) -> None:
    """Draw the mini sets, and the ladder of the edited subjects, with the experiment's seed."""
    if measured_parts(experiment):
        render_mini(experiment.out / _QUESTIONS, experiment.seed, experiment.settings.subjects)


def answer_questions(experiment: Experiment, arm: str, part: str) -> Figures:
    """Answer and score ordinary questions with the model in its current state.

    Writes `answers.jsonl`, `scores.json` and `run.json` into the folder `PART/ARM`.

    Args:
        experiment: has the model.
        arm: name of the model in its current state; only answers of "unedited" are cached.
        part: of `PARTS`.

    Returns:
        The figures, with `n`, the number of questions: of the ladder all, and `rung_<n>/n`, the number of benign questions;
        of the mini sets those that tables show.
    """
    out = experiment.out / part / arm
    remove_progress(out / UNFINISHED)
    sources, data = mini_sources(experiment.out / _QUESTIONS)
    questions = TaskQuestions(
        sources.read(PARTS[part], data), _limit(experiment, part), limit_per="rung" if part == "ladder" else None
    )
    trainer = Trainer(
        logger=False, enable_progress_bar=experiment.show_progress, precision=experiment.precision, **TRAINER_OPTIONS
    )
    answering = Answering(max_new_tokens=_MAX_NEW_TOKENS, batch_size=_BATCH_SIZE)
    model, processor = experiment.model, experiment.processor
    answer_tasks(model, processor, questions, out, trainer, answering, use_cache=arm == "unedited")
    remove_progress(out / UNFINISHED)
    scores = score_run(out, KeywordListJudge(), LeakScorer())
    counts = {task: {"n": count["answered"]} for task, count in scores["questions"].items()}
    if part == "ladder":
        rungs = Counter(answer.fields["rung"] for answer in _benign(out))
        by_rung = {f"rung_{rung}/n": count for rung, count in sorted(rungs.items())}
        return {**scores["tasks"][LADDER]["figures"], **by_rung, **counts[LADDER]}
    return {
        task: {name: row["figures"][name] for name in BENCHMARKS[task].shown if name in row["figures"]} | counts[task]
        for task, row in scores["tasks"].items()
    }


def ladder_examples(out: Path, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the first benign question of each rung, by name, with the answer of each model.

    Args:
        out: folder of the run.
        arms: models with answers.

    Returns:
        `rung_<n>` -> `prompt` and `answers`: model -> answer.
    """
    examples: dict[str, dict[str, Any]] = {}
    for arm in arms:
        for answer in _benign(out / "ladder" / arm):
            example = examples.setdefault(
                f"rung_{answer.fields['rung']}", {"item_id": answer.item_id, "prompt": answer.prompt, "answers": {}}
            )
            if answer.item_id == example["item_id"]:
                example["answers"][arm] = answer.answer
    return dict(sorted(examples.items()))


def _benign(folder: Path) -> Iterator[AnsweredItem]:
    return (answer for answer in read_answered(folder) if not answer.fields["unsafe"])


def _limit(experiment: Experiment, part: str) -> int | None:
    settings = experiment.settings
    return settings.questions_per_rung if part == "ladder" else settings.questions_per_set
