"""`neuralgate eval`."""

from __future__ import annotations

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from lightning_neuralgate.cli import eval_tasks
from lightning_neuralgate.cli.modes import check_mode
from lightning_neuralgate.cli.options import UNFINISHED, ModelOptions, add_config, check_folder
from lightning_neuralgate.cli.tables import print_rates
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.evaluation.answers import write_answers
from lightning_neuralgate.evaluation.run import evaluate, summarize
from lightning_neuralgate.evaluation.statistics import bootstrap_intervals
from lightning_neuralgate.hf.generation import PAPER_SAMPLING
from lightning_neuralgate.metrics.functional import RefusalVariant
from lightning_neuralgate.runtime.files import atomic_write


def add_arguments(parser: ArgumentParser) -> None:
    """Options of measuring."""
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, help="Folder for results.json and answers.jsonl.")
    parser.add_argument("--variant", type=RefusalVariant, default="prefix", help="Keyword list that says what refuses.")
    parser.add_argument("--max_new_tokens", type=PositiveInt, default=50, help="Length of an answer.")
    parser.add_argument("--batch_size", type=PositiveInt, default=8, help="Queries answered at once.")
    parser.add_argument("--sample", type=bool, default=False, help="Sample as in the paper instead of greedy answers.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of sampling.")
    parser.add_argument(
        "--until_decided",
        type=bool,
        default=False,
        help="End each answer where the rest cannot change what the keyword list says: refusal rates alone, in less time.",
    )
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_class_arguments(DataOptions, "data")
    eval_tasks.add_arguments(parser)


def check(options: Namespace) -> None:
    """Refuse, before anything is loaded, what cannot be done and what would be passed over in silence."""
    parsers = ArgumentParser(), ArgumentParser()
    add_arguments(parsers[0])
    eval_tasks.add_arguments(parsers[1])
    everything, of_tasks = (parser.get_defaults() for parser in parsers)
    check_mode(
        {name for name, value in options.items() if value != everything.get(name)}, set(of_tasks.keys()), options
    )
    for folder in (options.out, options.out / UNFINISHED):
        check_folder("--out", folder)


def run(options: Namespace) -> None:
    """Answer, judge, save and print."""
    from lightning.pytorch import seed_everything

    seed_everything(options.seed, verbose=False)
    options.data.refuse_retention("nothing is edited here")
    if options.tasks is not None:
        eval_tasks.run(options)
        return
    splits = options.data.read()
    model, processor = options.model.load()
    tested = {name: records for name, records in splits._asdict().items() if name != "edit" and records}
    answers = evaluate(
        model, processor, tested, options.data.images(), "evaluated", options.variant, options.max_new_tokens,
        options.batch_size, PAPER_SAMPLING if options.sample else None, until_decided=options.until_decided,
    )  # fmt: skip
    rates = summarize(answers)
    results = {
        **rates,
        "intervals": bootstrap_intervals(answers),
        "refusal_variant": options.variant,
        "seed": options.seed,
    }
    write_answers(options.out / "answers.jsonl", answers)
    with atomic_write(options.out / "results.json") as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_rates({"evaluated": rates}, title="What the model says")
    print(f"RtA by the keyword list '{options.variant}'. Intervals and all rates: {options.out / 'results.json'}")
