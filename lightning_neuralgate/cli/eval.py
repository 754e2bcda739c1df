"""`neuralgate eval`: benchmarks, on one model or on two that are compared."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from lightning_neuralgate.cli.compare import show_comparison
from lightning_neuralgate.cli.options import ModelOptions, add_config, add_trainer, check_folder, check_inputs
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.tables import print_notes, print_scores
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.data.records import RECORDS_NAME
from lightning_neuralgate.edit.delta import DELTA_NAME, EditDelta
from lightning_neuralgate.errors import DataFormatError, UnsupportedSetupError
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.generation import PAPER_SAMPLING
from lightning_neuralgate.metrics.functional import RefusalVariant
from lightning_neuralgate.models.loading import load_model, model_folder
from lightning_neuralgate.runtime.files import remove_temporary_files
from lightning_neuralgate.runtime.run_folder import RUN_NAME, UNFINISHED, has_progress, remove_progress, run_folder
from lightning_neuralgate.tasks.answer_store import ANSWERS_NAME
from lightning_neuralgate.tasks.benchmarks import BENCHMARKS
from lightning_neuralgate.tasks.item import BROKEN_NAME, OnBroken
from lightning_neuralgate.tasks.judge_options import JudgeOptions
from lightning_neuralgate.tasks.mini import render_mini
from lightning_neuralgate.tasks.options import TaskSources, benchmark_of_option, mini_sources, task_names
from lightning_neuralgate.tasks.questions import Source, TaskQuestions
from lightning_neuralgate.tasks.runner import Answering, TaskRun, answer_tasks
from lightning_neuralgate.tasks.scoring import SCORES_NAME, score_run
from lightning_neuralgate.tasks.verdicts import GuardScorer, MemoizedJudge, NamedRefusalJudge


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of evaluation."""
    add_config(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="Folder for answers.jsonl, scores.json and run.json."
    )  # fmt: skip
    parser.add_argument(
        "--tasks", type=str, default="privacy_pair",
        help=f"Benchmarks, comma-separated: {', '.join(BENCHMARKS)}; or all that --mini draws.",
    )  # fmt: skip
    parser.add_argument("--mini", action="store_true", help="Small drawn sets instead of the benchmarks' files.")
    parser.add_argument("--mini_seed", type=int, default=0, help="With --mini: seed of the drawn sets.")
    parser.add_argument("--and", type=str | None, default=None, help="A second model, compared with the first.")
    parser.add_argument(
        "--delta", type=Path | None, default=None,
        help="File of an edit that is applied to the model first; with --and, to the second model.",
    )  # fmt: skip
    parser.add_argument(
        "--gate",
        type=Path | None,
        default=None,
        help="The edit's gate, checked against the model and noted in run.json.",
    )
    parser.add_argument("--limit", type=PositiveInt | None, default=None, help="Maximum number of questions per task.")
    parser.add_argument("--broken", type=OnBroken, default="stop", help="Stop at broken items, or skip and count them.")
    parser.add_argument("--variant", type=RefusalVariant, default="prefix", help="Keyword list that detects refusals.")
    parser.add_argument("--max_new_tokens", type=PositiveInt, default=50, help="Maximum length of an answer.")
    parser.add_argument("--batch_size", type=PositiveInt, default=8, help="Questions per batch and process.")
    parser.add_argument("--sample", type=bool, default=False, help="Sample as in the paper instead of greedy answers.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of sampling.")
    parser.add_argument(
        "--until_decided", type=bool, default=False,
        help="End each answer once the rest cannot change the keyword list's verdict: refusal rates alone, in less time.",
    )  # fmt: skip
    parser.add_argument("--cache", type=bool, default=True, help="Reuse and store answers in the cache.")
    parser.add_argument("--num_workers", type=NonNegativeInt, default=0, help="Processes that read pictures.")
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(TaskSources, "sources")
    parser.add_class_arguments(JudgeOptions, "judge")
    add_trainer(parser, logger=False)


def check(options: Namespace) -> None:
    """Refuse, before anything is loaded, options that would change nothing, and combinations that cannot work.

    Raises:
        DataFormatError: an unknown task, or an output folder that is a file.
        UnsupportedSetupError: naming the option and the way out.
    """
    parser = ArgumentParser()
    add_arguments(parser)
    defaults = parser.get_defaults()
    tasks = task_names(options.tasks)
    for name in sorted(name for name, value in options.items() if value != defaults.get(name)):
        if reason := _no_effect(name, tasks, bool(options.mini)):
            raise UnsupportedSetupError(f"--{name} would change nothing: {reason}; leave it out")
    if options.until_decided and (tasks != ["privacy_pair"] or options.judge.kind != "list"):
        raise UnsupportedSetupError(
            "--until_decided is for the refusal rates of privacy_pair by a keyword list; other tasks and judges need "
            "complete answers: leave it out"
        )
    for folder in (options.out, options.out / UNFINISHED):
        check_folder("--out", folder)


def _no_effect(option: str, tasks: Collection[str], mini: bool) -> str | None:
    """Return why an option would change nothing for some tasks; None if it has an effect."""
    group, _, name = option.partition(".")
    if option == "mini_seed" and not mini:
        return "it is the seed of the sets that --mini draws"
    if option in ("judge.guard", "judge.guard_scores"):
        scored = [task for task, benchmark in BENCHMARKS.items() if benchmark.uses_guard]
        return None if set(scored) & set(tasks) else f"it scores {', '.join(scored)}, which is not among --tasks"
    if group not in ("data", "sources"):
        return None
    if mini:
        return "--mini draws the questions"
    benchmark = benchmark_of_option(group, name)
    if benchmark is None or benchmark.name in tasks:
        return None
    return f"it says where '{benchmark.name}' is, which is not among --tasks {','.join(tasks)}"


def run(options: Namespace) -> None:
    """Answer, score, save and print; two models one after the other. Started again after an interruption, it resumes."""
    from lightning.pytorch import seed_everything

    seed_everything(options.seed, verbose=False)
    options.data.refuse_retention("nothing is edited here")
    second = options["and"]
    given = {name: [value] if isinstance(value, str | Path) else value for name, value in vars(options.sources).items()}
    sources = {f"sources.{name} {path}": str(path) for name, paths in given.items() for path in paths or ()}
    check_inputs(options, **{"and": second, "delta": options.delta}, **sources)
    names = _folder_names(options.model.name, second) if second else ("", "")
    folders = [options.out / name for name in names] if second else [options.out]
    with ExitStack() as stack:
        for folder in dict.fromkeys((options.out, *folders)):
            stack.enter_context(run_folder(folder / UNFINISHED, options.trainer.is_global_zero))
            _check_answers_are_ours(folder)
        _run(options, second, names, folders)


def _check_answers_are_ours(folder: Path) -> None:
    if (folder / ANSWERS_NAME).exists() and not (folder / RUN_NAME).exists() and not has_progress(folder / UNFINISHED):
        raise DataFormatError(
            f"{folder / ANSWERS_NAME} would be replaced, but no run has written it ({RUN_NAME} is missing); move it away"
        )


def _run(options: Namespace, second: str | None, names: tuple[str, str], folders: Sequence[Path]) -> None:
    questions = TaskQuestions(_sources(options), options.limit, options.broken)
    questions.survey()  # errors in the data show before a model is loaded
    models = [options.model] + ([replace(options.model, name=second)] if second else [])
    if options.trainer.is_global_zero:  # errors in the judge's options show before hours of generation
        refusals, guards = options.judge.refusal_judge(options.variant), options.judge.guard_scorers(len(folders))
    missing = 0
    for model, folder in zip(models, folders, strict=True):
        missing += _answer(options, questions, model, folder, options.delta if folder == folders[-1] else None)
    if not options.trainer.is_global_zero:
        return
    judges: list[tuple[NamedRefusalJudge, GuardScorer]] = []
    for folder, guard in zip(folders, guards, strict=True):
        # the comparison needs the same verdicts again
        judges.append((MemoizedJudge(refusals), MemoizedJudge(guard)))
        scores = score_run(folder, *judges[-1])
        if not second:
            print_scores(scores, str(folder))
    if second:
        (first_judge, first_guard), (second_judge, second_guard) = judges
        show_comparison(
            (folders[0], folders[1]), options.out, names, (first_judge, second_judge), (first_guard, second_guard)
        )
    print_notes(scores)
    show(f"answers and all figures: {', '.join(str(folder / SCORES_NAME) for folder in folders)}")
    if missing:
        show(
            f"PARTIAL: {missing} questions are not answered; run the same command without what ends it early to answer them"
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
    last = folder / "privacy_pair" / RECORDS_NAME
    if options.trainer.is_global_zero and not last.is_file():
        remove_temporary_files(folder, folder / "privacy_pair")
        render_mini(folder, options.mini_seed)
    while not last.is_file():  # on other ranks
        time.sleep(0.1)
    sources, data = mini_sources(folder)
    return sources.read(tasks, data)


def _folder_names(first: str, second: str) -> tuple[str, str]:
    """Return different folder names for two models: the last parts of their names, numbered if equal."""
    names = _last_part(first), _last_part(second)
    return names if names[0] != names[1] else (f"{names[0]}-1", f"{names[1]}-2")


def _last_part(name: str) -> str:
    last = Path(name).name
    # "." and ".." would lead out of the output folder
    return Path(name).resolve().name if last in ("", "..") else last


def _answer(
    options: Namespace, questions: TaskQuestions, model_options: ModelOptions, folder: Path, delta: Path | None
) -> int:
    """Answer the questions with a model; return the number of questions without an answer."""
    gate = None if options.gate is None else NeuralGate.from_pretrained(options.gate)
    model, processor = _load(model_options, delta)
    notes = {"model": model_options.name}
    if delta is not None:
        notes["delta"] = EditDelta.load(delta).edited
    if gate is not None:
        gate.check_fits(model)
        notes["gate"] = gate.fingerprint
    answering = Answering(
        options.max_new_tokens,
        PAPER_SAMPLING if options.sample else None,
        options.seed,
        options.batch_size,
        until_decided=options.variant if options.until_decided else None,
    )
    run = answer_tasks(
        model, processor, questions, folder, options.trainer, answering, options.cache, options.num_workers, notes
    )
    if options.trainer.is_global_zero:
        _print_skipped(run)
    return run.missing


def _load(options: ModelOptions, delta: Path | None) -> tuple[Any, Any]:
    """Load a model and its processor, after applying an edit if there is one."""
    if delta is None:
        return options.load()
    with TemporaryDirectory() as scratch:
        edited = Path(scratch) / "edited"
        EditDelta.load(delta).apply(model_folder(options.name), edited)
        shutil.copyfile(delta, edited / DELTA_NAME)  # its weights are not quantized
        return load_model(edited, options.dtype, options.trust_remote_code, options.quantize)


def _print_skipped(run: TaskRun) -> None:
    for task, count in run.survey.broken.items():
        if count:
            show(f"{task}: {count} broken items skipped")
            for item in [item for item in run.survey.skipped if item.task == task][:5]:
                show(f"  {item}")
    for message in list(run.unreadable.values())[:5]:
        show(f"  {message}")
    if run.unreadable:
        show(
            f"{len(run.unreadable)} items skipped because of their pictures, or because the processor cannot take them"
        )
