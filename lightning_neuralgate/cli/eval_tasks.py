"""`neuralgate eval --tasks`: benchmarks, on one model or on two side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cache import remove_drafts, written_whole
from lightning_neuralgate.cli.options import ModelOptions, add_trainer
from lightning_neuralgate.cli.task_table import print_notes, print_scores
from lightning_neuralgate.delta import EditDelta
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gate import NeuralGate
from lightning_neuralgate.generation import PAPER_SAMPLING
from lightning_neuralgate.models.loading import load_model, model_folder
from lightning_neuralgate.resuming import forget_progress
from lightning_neuralgate.tasks.answer_file import ANSWERS_NAME, read_answered
from lightning_neuralgate.tasks.broken import OnBroken
from lightning_neuralgate.tasks.mini import render_mini
from lightning_neuralgate.tasks.options import TaskSources, mini_sources, task_names
from lightning_neuralgate.tasks.questions import TaskQuestions
from lightning_neuralgate.tasks.runner import UNFINISHED, Answering, answer_tasks
from lightning_neuralgate.tasks.scores import task_scores
from lightning_neuralgate.tasks.tallies import tally_answers

SCORES_NAME = "scores.json"


def add_arguments(parser: ArgumentParser) -> None:
    """Options of benchmarks."""
    parser.add_argument(
        "--tasks",
        type=str | None,
        default=None,
        help="Benchmarks to run instead: privacy_pair, pope, mme, scienceqa, mllmguard, with commas between them, or all.",
    )
    parser.add_argument("--mini", action="store_true", help="With --tasks: small drawn sets instead of the benchmarks' files.")
    parser.add_argument("--mini_seed", type=int, default=0, help="Seed of the drawn sets.")
    parser.add_argument("--and", type=str | None, default=None, help="With --tasks: a second model, compared with the first.")
    parser.add_argument(
        "--delta", type=Path | None, default=None, help="With --tasks: file of an edit, made in the model before it is asked."
    )
    parser.add_argument(
        "--gate", type=Path | None, default=None, help="With --tasks: the edit's gate; has to fit the model, and is noted."
    )
    parser.add_argument("--limit", type=int | None, default=None, help="With --tasks: at most so many questions of each.")
    parser.add_argument(
        "--broken", type=OnBroken, default="stop", help="With --tasks: stop at broken items, or skip and count them."
    )
    parser.add_argument("--cache", type=bool, default=True, help="With --tasks: keep answers, and take those given before.")
    parser.add_argument("--num_workers", type=int, default=0, help="With --tasks: processes that read pictures.")
    parser.add_class_arguments(TaskSources, "sources")
    add_trainer(parser, logger=False)


def run(options: Namespace) -> None:
    """Answer, score, save, print."""
    tasks = task_names(options.tasks)
    sources, data = options.sources, options.data
    if options.mini:
        folder = options.out / f"mini-{options.mini_seed}"
        if not (folder / "privacy_pair").is_dir():
            render_mini(folder, options.mini_seed)
        sources, data = mini_sources(folder)
    questions = TaskQuestions(sources.read(tasks, data), options.limit, options.broken)
    answering = Answering(
        options.max_new_tokens, PAPER_SAMPLING if options.sample else None, options.seed, options.batch_size
    )
    model, processor = _loaded(options.model, options.delta)
    if options.gate is not None:
        NeuralGate.from_pretrained(options.gate).check_fits(model)
    done = answer_tasks(
        model, processor, questions, options.out, options.trainer, answering, options.cache, options.num_workers
    )
    if not options.trainer.is_global_zero:
        return
    scores = scored(options.out, options.variant)
    print_scores(scores, str(options.out))
    print_notes(scores)
    forget_progress(options.out / UNFINISHED)


def scored(folder: Path, variant: str) -> dict[str, Any]:
    """Score the answers in a folder, and write the scores beside them."""
    tallies = tally_answers(read_answered(folder), variant)
    scores = task_scores(tallies, f"the keyword list '{variant}'")
    write_json(folder / SCORES_NAME, scores)
    return scores


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file of JSON, whole or not at all."""
    with written_whole(file) as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _loaded(named: ModelOptions, delta: Path | None) -> tuple[Any, Any]:
    """A model and its processor, after an edit if there is one."""
    if delta is None:
        return named.load()
    with TemporaryDirectory() as scratch:
        edited = Path(scratch) / "edited"
        EditDelta.load(delta).apply(model_folder(named.name), edited)
        return load_model(edited, named.dtype, named.trust_remote_code)
