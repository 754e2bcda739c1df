"""`neuralgate score`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.eval_tasks import SCORES_NAME, scored
from lightning_neuralgate.cli.options import add_config, check_folder
from lightning_neuralgate.cli.tables import print_agreement, print_notes, print_scores
from lightning_neuralgate.metrics.functional import RefusalVariant
from lightning_neuralgate.tasks.exports import export_results
from lightning_neuralgate.tasks.judge_options import ExtraJudge, JudgeOptions, extra_refusal_judges


def add_arguments(parser: ArgumentParser) -> None:
    """Options of scoring."""
    add_config(parser)
    parser.add_argument("folder", type=Path, help="Folder with answers.jsonl, made by `neuralgate eval --tasks`.")
    parser.add_argument("--variant", type=RefusalVariant, default="prefix", help="Keyword list that says what refuses.")
    parser.add_class_arguments(JudgeOptions, "judge")
    parser.add_argument(
        "--beside", type=Sequence[ExtraJudge], default=(),
        help="Further judges of refusals, whose agreement with the judge and with each other is told: prefix, gcg, xstest, "
        "reader, or options as under --judge, such as '[gcg, {kind: classifier, name: FOLDER}]'.",
    )  # fmt: skip
    parser.add_argument(
        "--export", type=Path | None, default=None,
        help="Folder for the results in the formats of MME's tool and of POPE.",
    )  # fmt: skip
    parser.add_argument("--out", type=Path | None, default=None, help=f"Folder for {SCORES_NAME}; the answers' own.")


def run(options: Namespace) -> None:
    """Score stored answers again, without a model."""
    for option, folder in (("--out", options.out), ("--export", options.export)):
        if folder is not None:
            check_folder(option, folder)
    (guard,) = options.judge.guard_scorers()
    refusals, beside = (
        options.judge.refusal_judge(options.variant),
        extra_refusal_judges(options.beside, options.variant),
    )
    scores = scored(options.folder, refusals, guard, options.out, beside)
    print_scores(scores, str(options.folder))
    if beside:
        print_agreement(scores["agreement"])
    print_notes(scores)
    if options.export is not None:
        for file in export_results(options.folder, options.export):
            print(f"written: {file}")
