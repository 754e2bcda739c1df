"""`neuralgate eval --tasks`: benchmarks, on one model or on two side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from lightning_neuralgate.cli.compare import show_comparison
from lightning_neuralgate.cli.options import ModelOptions, add_trainer
from lightning_neuralgate.cli.tables import print_notes, print_scores
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.generation import PAPER_SAMPLING
from lightning_neuralgate.models.loading import load_model, model_folder
from lightning_neuralgate.runtime.files import atomic_write, remove_temporary_files
from lightning_neuralgate.runtime.resume import RUN_NAME, remove_progress
from lightning_neuralgate.tasks.account import partial_tasks, tally_run
from lightning_neuralgate.tasks.agreeing import judges_agreement
from lightning_neuralgate.tasks.answer_store import ANSWERS_NAME, read_answered
from lightning_neuralgate.tasks.item import BROKEN_NAME, OnBroken
from lightning_neuralgate.tasks.judge_options import JudgeOptions
from lightning_neuralgate.tasks.mini import render_mini
from lightning_neuralgate.tasks.options import TaskSources, mini_sources, task_names
from lightning_neuralgate.tasks.questions import Source, TaskQuestions
from lightning_neuralgate.tasks.runner import UNFINISHED, Answering, TaskRun, answer_tasks
from lightning_neuralgate.tasks.scores import task_scores
from lightning_neuralgate.tasks.verdicts import GuardScorer, MemoizedJudge, NamedRefusalJudge, unclear_replies

SCORES_NAME = "scores.json"


def add_arguments(parser: ArgumentParser) -> None:
    """Options of benchmarks."""
    parser.add_argument(
        "--tasks",
        type=str | None,
        default=None,
        help="Benchmarks to run instead: privacy_pair, pope, mme, scienceqa, mllmguard, with commas between them, or all.",
    )
    parser.add_argument(
        "--mini", action="store_true", help="With --tasks: small drawn sets instead of the benchmarks' files."
    )
    parser.add_argument("--mini_seed", type=int, default=0, help="With --mini: seed of the drawn sets.")
    parser.add_argument(
        "--and", type=str | None, default=None, help="With --tasks: a second model, compared with the first."
    )
    parser.add_argument(
        "--delta",
        type=Path | None,
        default=None,
        help="With --tasks: file of an edit, made in the model before it is asked; with --and, in the second.",
    )
    parser.add_argument(
        "--gate",
        type=Path | None,
        default=None,
        help="With --tasks: the edit's gate; has to fit the model, and is noted.",
    )
    parser.add_argument(
        "--limit", type=PositiveInt | None, default=None, help="With --tasks: at most so many questions of each."
    )
    parser.add_argument(
        "--broken", type=OnBroken, default="stop", help="With --tasks: stop at broken items, or skip and count them."
    )
    parser.add_argument(
        "--cache", type=bool, default=True, help="With --tasks: keep answers, and take those given before."
    )
    parser.add_argument(
        "--num_workers", type=NonNegativeInt, default=0, help="With --tasks: processes that read pictures."
    )
    parser.add_class_arguments(TaskSources, "sources")
    parser.add_class_arguments(JudgeOptions, "judge")
    add_trainer(parser, logger=False)


def run(options: Namespace) -> None:
    """Answer, score, save, print; two models one after the other. Started again after it was killed, it goes on."""
    questions = TaskQuestions(_sources(options), options.limit, options.broken)
    questions.survey()  # before a model is loaded
    second = options["and"]
    names = _names(options.model.name, second) if second else ("", "")
    folders = [options.out / name for name in names] if second else [options.out]
    models = [options.model] + ([replace(options.model, name=second)] if second else [])
    if options.trainer.is_global_zero:  # now, not after an hour of answering
        refusals, guards = options.judge.refusal_judge(options.variant), options.judge.guard_scorers(len(folders))
    missing = 0
    for named, folder in zip(models, folders, strict=True):
        missing += _answer(options, questions, named, folder, options.delta if folder == folders[-1] else None)
    if not options.trainer.is_global_zero:
        return
    told: list[tuple[NamedRefusalJudge, GuardScorer]] = []
    for folder, guard in zip(folders, guards, strict=True):
        # the comparison asks about the same answers again
        told.append((MemoizedJudge(refusals), MemoizedJudge(guard)))
        scores = scored(folder, *told[-1])
        if not second:
            print_scores(scores, str(folder))
    if second:
        (one, one_guard), (other, other_guard) = told
        show_comparison((folders[0], folders[1]), options.out, names, (one, other), (one_guard, other_guard))
    print_notes(scores)
    print(f"answers and all figures: {', '.join(str(folder / SCORES_NAME) for folder in folders)}")
    if missing:
        print(
            f"PARTIAL: {missing} questions were not asked; the same command without what ends it early goes on with those"
        )
    for folder in folders:
        if not missing:
            remove_progress(folder / UNFINISHED)
        remove_temporary_files(folder / ANSWERS_NAME, folder / SCORES_NAME, folder / RUN_NAME, folder / BROKEN_NAME)


def _sources(options: Namespace) -> dict[str, Source]:
    tasks = task_names(options.tasks)
    if not options.mini:
        return dict(options.sources.read(tasks, options.data))
    folder = options.out / f"mini-{options.mini_seed}"
    if not (folder / "privacy_pair").is_dir():
        render_mini(folder, options.mini_seed)
    sources, data = mini_sources(folder)
    return sources.read(tasks, data)


def _names(first: str, second: str) -> tuple[str, str]:
    """What to call two models: the last parts of their names, told apart."""
    one, other = _last_part(first), _last_part(second)
    return (one, other) if one != other else (f"{one}-1", f"{other}-2")


def _last_part(name: str) -> str:
    last = Path(name).name
    # of "." and "..", which would lead out of the output folder, what they stand for
    return Path(name).resolve().name if last in ("", "..") else last


def _answer(options: Namespace, questions: TaskQuestions, named: ModelOptions, folder: Path, delta: Path | None) -> int:
    """Let a model answer; returns how many questions were not asked."""
    gate = None if options.gate is None else NeuralGate.from_pretrained(options.gate)
    model, processor = _loaded(named, delta)
    notes = {"model": named.name}
    if delta is not None:
        notes["delta"] = EditDelta.load(delta).edited
    if gate is not None:
        gate.check_fits(model)
        notes["gate"] = gate.fingerprint
    answering = Answering(
        options.max_new_tokens, PAPER_SAMPLING if options.sample else None, options.seed, options.batch_size
    )
    done = answer_tasks(
        model, processor, questions, folder, options.trainer, answering, options.cache, options.num_workers, notes
    )
    if options.trainer.is_global_zero:
        _tell_broken(done)
    return done.missing


def _tell_broken(done: TaskRun) -> None:
    for task, count in done.survey.broken.items():
        if count:
            print(f"{task}: {count} broken items skipped")
            for one in [one for one in done.survey.skipped if one.task == task][:5]:
                print(f"  {one}")
    for message in list(done.unreadable.values())[:5]:
        print(f"  {message}")
    if done.unreadable:
        print(
            f"{len(done.unreadable)} items skipped because of their pictures, or because the processor cannot take them"
        )


def scored(
    folder: Path,
    refusals: NamedRefusalJudge,
    guard: GuardScorer,
    out: Path | None = None,
    beside: Sequence[NamedRefusalJudge] = (),
) -> dict[str, Any]:
    """Score the answers in a folder, and write the scores beside them, or elsewhere; with the agreement of further judges."""
    asked, asked_guard = MemoizedJudge(refusals), MemoizedJudge(guard)
    tallies, told = tally_run(folder, asked, asked_guard)
    if not tallies and not told:
        raise DataFormatError(f"{folder} holds no answers, so there is nothing to score")
    questions = {task: account._asdict() for task, account in told.items()}
    scores = task_scores(tallies, refusals.name, guard.name) | {"questions": questions, "partial": partial_tasks(told)}
    judges = [asked, *map(MemoizedJudge, beside)]
    if beside:
        scores["agreement"] = judges_agreement(read_answered(folder), judges)
    unclear = [*map(unclear_replies, judges), unclear_replies(asked_guard)]
    scores["unclear"] = [row for rows in unclear for row in rows]
    with atomic_write((out or folder) / SCORES_NAME) as draft:
        draft.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    return scores


def _loaded(named: ModelOptions, delta: Path | None) -> tuple[Any, Any]:
    """A model and its processor, after an edit if there is one."""
    if delta is None:
        return named.load()
    with TemporaryDirectory() as scratch:
        edited = Path(scratch) / "edited"
        EditDelta.load(delta).apply(model_folder(named.name), edited)
        return load_model(edited, named.dtype, named.trust_remote_code)
