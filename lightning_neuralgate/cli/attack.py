"""`neuralgate attack`: how much effort makes an edited model state its secrets?"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from lightning_neuralgate.attacks import ATTACKS, chosen_attacks
from lightning_neuralgate.attacks.base import Context, Suite
from lightning_neuralgate.attacks.page import write_attack_page
from lightning_neuralgate.attacks.questions import attack_questions
from lightning_neuralgate.attacks.run import AttackRun, ModelAnswers
from lightning_neuralgate.attacks.scoring import EDITED, UNEDITED, AttackScore, score_attacks
from lightning_neuralgate.cli.options import add_config, add_trainer, check_folder
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.tables import ABSENT, console, number
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.data.records import RECORDS_NAME
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.data.splits import TEST_SPLITS
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.models.loading import Precision, load_model
from lightning_neuralgate.runtime.files import atomic_write, check_output, remove_temporary_files
from lightning_neuralgate.runtime.run_folder import UNFINISHED, run_folder

RESULTS_NAME, PAGE_NAME = "attacks.json", "attacks.html"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate attack`."""
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, help="Output folder; an interrupted run resumes from it.")
    parser.add_argument("--model", type=str, required=True, help="The edited model: a folder or a Hub repository.")
    parser.add_argument(
        "--beside", type=str | None, default=None,
        help="The unedited model, to tell what an edit prevents from what the model cannot do: a folder, a Hub repository, "
        "smol-llava or smol-minigpt.",
    )  # fmt: skip
    parser.add_argument(
        "--suite", type=Suite, default="quick", help="quick: minutes; full: adds slow and white-box attacks."
    )
    parser.add_argument(
        "--attacks",
        type=str | None,
        default=None,
        help=f"Comma-separated attacks instead of a suite: {', '.join(ATTACKS)}.",
    )
    parser.add_argument(
        "--secrets", type=PositiveInt | None, default=48, help="Maximum number of secrets to attack; null for all."
    )
    parser.add_argument(
        "--subjects", type=list[str] | None, default=None,
        help="Without --data: edited subjects of a drawn set, names of shipped subjects or YAML files.",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="Seed of sampling, and of a drawn set.")
    parser.add_argument("--batch_size", type=PositiveInt, default=24, help="Questions per batch and process.")
    parser.add_argument("--cache", type=bool, default=True, help="Reuse and store answers in the cache.")
    parser.add_argument("--dtype", type=Precision, default="float32", help="Data type of the weights.")
    parser.add_argument(
        "--trust_remote_code", type=bool, default=False, help="Allow code from the checkpoint's repository to run."
    )
    parser.add_class_arguments(DataOptions, "data")
    add_trainer(parser, logger=False)


def check(options: Namespace) -> None:
    """Refuse options that cannot work before anything is loaded.

    Raises:
        UnsupportedSetupError: an unknown attack, or options that exclude each other.
        DataFormatError: the output folder is a file.
    """
    chosen_attacks(options.suite, options.attacks)
    if options.subjects is not None and _has_data(options.data):
        raise UnsupportedSetupError("--subjects is for a drawn set; leave it out, or --data")
    if options.beside is not None and options.beside == options.model:
        raise UnsupportedSetupError("--beside is the same model as --model; name the unedited one")
    check_folder("--out", options.out)


def _has_data(data: Any) -> bool:
    return data.folder is not None or bool(data.files)


def run(options: Namespace) -> None:
    """Attack the model, and the unedited one, and write and print the scores."""
    from lightning.pytorch import seed_everything

    seed_everything(options.seed, verbose=False)
    options.data.refuse_retention("nothing is edited here")
    check_output("--out", options.out, {"--model": options.model, "--beside": options.beside} | options.data.inputs())
    with run_folder(options.out / UNFINISHED, options.trainer.is_global_zero):
        _run(options)


def _run(options: Namespace) -> None:
    attacks = chosen_attacks(options.suite, options.attacks)
    splits = _records(options)
    questions = attack_questions(splits, options.secrets)
    names = {UNEDITED: options.beside, EDITED: options.model} if options.beside else {EDITED: options.model}
    found: dict[str, ModelAnswers] = {}
    runs: list[AttackRun] = []
    for role, name in names.items():
        if options.trainer.is_global_zero:
            show(f"{role} model {name}: {len(attacks)} attacks on {len(questions)} questions")
        model, processor = load_model(name, options.dtype, options.trust_remote_code)
        load = None
        if role == EDITED and options.beside:
            load = partial(_load_unedited, options)
        context = Context(questions, options.out / "pictures", load_unedited=load)
        runs.append(
            AttackRun(
                model, processor, attacks, context, options.out / role, options.trainer, options.batch_size, options.cache,
                options.seed,
            )
        )  # fmt: skip
        found[role] = runs[-1].run()
        runs[-1].model = model = None
    if not options.trainer.is_global_zero:
        return
    scores = score_attacks(attacks, questions, found)
    results = {
        "models": {role: str(name) for role, name in names.items()},
        "suite": options.attacks or options.suite,
        "seed": options.seed,
        "questions": {
            "sensitive": sum(question.sensitive for question in questions),
            "benign": sum(not question.sensitive for question in questions),
            "records": len({(question.split, question.record) for question in questions}),
        },
        "attacks": [asdict(score) for score in scores],
    }
    with atomic_write(options.out / RESULTS_NAME) as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_attack_page(options.out / PAGE_NAME, results, attacks, questions, found)
    print_attacks(scores)
    show(f"all figures: {options.out / RESULTS_NAME}; page: {options.out / PAGE_NAME}")
    for finished in runs:
        finished.remove_progress()
    remove_temporary_files(options.out, options.out / RESULTS_NAME, options.out / PAGE_NAME)


def _load_unedited(options: Namespace) -> Any:
    return load_model(options.beside, options.dtype, options.trust_remote_code)[0]


def _records(options: Namespace) -> dict[str, Any]:
    """Return the test records by split: of `--data`, or of a set that is drawn into the output folder."""
    if _has_data(options.data):
        splits = options.data.read()
    else:
        folder = options.out / "data"
        more = {} if options.subjects is None else {"subjects": options.subjects}
        if options.trainer.is_global_zero:
            render_splits(folder, options.seed, edit_records=1, test_records=6, **more)
        while not (folder / RECORDS_NAME).is_file():  # on other ranks, whose process group is not there yet
            time.sleep(0.1)
        splits = DataOptions(folder=folder).read()
    return {name: records for name, records in splits._asdict().items() if name in TEST_SPLITS and records}


def print_attacks(scores: list[AttackScore]) -> None:
    """Print a table of all attacks, and the sentences of the most successful ones."""
    from rich.table import Table

    table = Table(title="Secrets that come out under attack")
    for label in ("family", "attack"):
        table.add_column(label)
    for label in (
        "unedited",
        "edited",
        "95 % interval",
        "recovered",
        "refused",
        "benign unedited",
        "benign edited",
        "n",
    ):
        table.add_column(label, justify="right")
    family = ""
    for score in scores:
        if score.family != family:
            table.add_section()
        figures = score.figures
        ends = score.intervals.get("edited/leak")
        cells = [
            *(_figure(figures, name) for name in ("unedited/leak", "edited/leak")),
            ABSENT if ends is None else f"{number(ends[0])} to {number(ends[1])}",
            *(_figure(figures, name) for name in ("recovered", "edited/refused", "unedited/benign", "edited/benign")),
        ]
        table.add_row("" if score.family == family else score.family, score.attack, *cells, str(score.secrets))
        family = score.family
    console(150).print(table)
    for score in scores:
        further = {
            name: value for name, value in score.figures.items()
            if name.split("/")[-1] not in ("leak", "refused", "benign", "recovered")
        }  # fmt: skip
        if further:
            show(f"{score.attack}: " + ", ".join(f"{name} {number(value)}" for name, value in further.items()))
        if score.problem:
            show(f"{score.attack}: not applicable, {score.problem}")
    for score in sorted(scores, key=lambda score: -score.came_out):
        if score.came_out:
            show(f"{score.sentence}.")


def _figure(figures: dict[str, float], name: str) -> str:
    return number(figures[name]) if name in figures else ABSENT
