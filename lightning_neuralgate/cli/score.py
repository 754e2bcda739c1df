"""`neuralgate score`: score stored answers, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config, check_folder
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.tables import print_agreement, print_notes, print_scores
from lightning_neuralgate.metrics.functional import RefusalVariant
from lightning_neuralgate.tasks.exports import export_results
from lightning_neuralgate.tasks.judge_options import ExtraJudge, JudgeOptions, extra_refusal_judges
from lightning_neuralgate.tasks.scoring import SCORES_NAME, score_run


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of scoring."""
    add_config(parser)
    parser.add_argument("folder", type=Path, help="Folder with answers.jsonl, written by `neuralgate eval`.")
    parser.add_argument("--variant", type=RefusalVariant, default="prefix", help="Keyword list that detects refusals.")
    parser.add_class_arguments(JudgeOptions, "judge")
    parser.add_argument(
        "--beside", type=Sequence[ExtraJudge], default=(),
        help="Additional refusal judges, to print their agreement with the judge and each other: prefix, gcg, xstest, "
        "reader, or options as under --judge, such as '[gcg, {kind: classifier, name: FOLDER}]'.",
    )  # fmt: skip
    parser.add_argument(
        "--export", type=Path | None, default=None,
        help="Folder for the answers in the formats of the benchmarks' own tools (POPE, MME).",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path | None, default=None, help=f"Folder for {SCORES_NAME}; default: that of the answers."
    )


def run(options: Namespace) -> None:
    """Score stored answers, and print and write the scores."""
    for option, folder in (("--out", options.out), ("--export", options.export)):
        if folder is not None:
            check_folder(option, folder)
    (guard,) = options.judge.guard_scorers()
    refusals = options.judge.refusal_judge(options.variant)
    further = extra_refusal_judges(options.beside, options.variant)
    scores = score_run(options.folder, refusals, guard, options.out, further)
    print_scores(scores, str(options.folder))
    if further:
        print_agreement(scores["agreement"])
    print_notes(scores)
    if options.export is not None:
        for file in export_results(options.folder, options.export):
            show(f"written: {file}")
