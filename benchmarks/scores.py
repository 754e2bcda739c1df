"""How long it takes to score stored answers, and how much memory.

    python -m benchmarks.scores --answers 100000 --json FILE

Answers are made up from a seed: some refuse, some are a word, some a paragraph. For each metric: seconds for all of them, and
the most memory that was used beyond what was there, given the answers in one list and, for the torchmetrics classes, in
batches of 1000. Judges that run a model are not timed here.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import measured, tell
from lightning_neuralgate.evaluation.statistics import paired_differences, score_intervals
from lightning_neuralgate.metrics import (
    MME,
    POPE,
    BenignAccuracy,
    LeakRate,
    MLLMGuard,
    PartialLeak,
    RefuseToAnswerRate,
    ScienceQA,
)
from lightning_neuralgate.metrics import functional as scored

BATCH = 1000
TEXT = "the passport is red and it lies on a wooden table near two cups while a dog not far away looks at no one yes"
WORDS = TEXT.split()
OPENINGS = (
    "Yes",
    "No",
    "Yes, ",
    "No. ",
    "I'm sorry, I cannot ",
    "A. ",
    "The answer is B. ",
    "C",
    "I do not ",
    "It is ",
    "",
)


def made_up(count: int, seed: int) -> list[str]:
    """So many answers: an opening, and up to 60 words."""
    draw = random.Random(seed)
    return [
        draw.choice(OPENINGS)
        + " ".join(draw.choices(WORDS, k=draw.choice((0, 0, 5, 12, 60))))
        + str(draw.randrange(10**6))
        for _ in range(count)
    ]


def columns(count: int) -> dict[str, list[Any]]:
    """What the metrics want beside the answers."""
    draw = random.Random(1)
    images = [str(place // 2) for place in range(count)]
    return {
        "secrets": [f"{draw.randrange(10**7):07d}" for _ in images],
        "values": draw.choices(("red", "wooden table", "blue"), k=count),
        "labels": draw.choices(("yes", "no"), k=count),
        "images": images,
        "subtasks": [scored.PERCEPTION[int(image) % len(scored.PERCEPTION)] for image in images],
        "choices": draw.choices((0, 1, 2), k=count),
        "counts": [3] * count,
        "scores": draw.choices((0, 1, 2, 3, None), k=count),
        "dimensions": draw.choices(("privacy", "bias", "toxicity", "truthfulness", "legality"), k=count),
    }


def metrics(answers: list[str], others: list[str], of: dict[str, list[Any]]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Metric -> what computes it over all answers; `others` are those of a second run."""
    for variant in ("prefix", "gcg", "xstest"):
        yield f"rta_{variant}", lambda variant=variant: scored.refuse_to_answer_rate(answers, variant)
    yield "leak_rate", lambda: scored.leak_rate(answers, of["secrets"])
    yield "partial_leak", lambda: scored.partial_leak(answers, of["secrets"])
    yield "benign_accuracy", lambda: scored.benign_accuracy(answers, of["values"])
    yield "pope", lambda: scored.pope(answers, of["labels"])
    yield "mme", lambda: scored.mme(answers, of["labels"], of["images"], of["subtasks"])
    yield "scienceqa", lambda: scored.scienceqa(answers, of["choices"], of["counts"])
    yield "mllmguard", lambda: scored.mllmguard(of["scores"], of["dimensions"], answers)
    yield "judge_score", lambda: [scored.judge_score(answer) for answer in answers]
    yield "cohens_kappa", lambda: scored.cohens_kappa(of["labels"], of["labels"][::-1])
    for name, tally, rest in (
        ("pope", scored.pope_tally, (of["labels"],)),
        ("mme", scored.mme_tally, (of["labels"], of["images"], of["subtasks"])),
        ("scienceqa", scored.scienceqa_tally, (of["choices"], of["counts"])),
    ):
        one, other = tally(answers, *rest), tally(others, *rest)
        yield f"{name}_intervals", lambda one=one: score_intervals(one)
        yield f"{name}_paired", lambda one=one, other=other: paired_differences(one, other)
    for metric, rest in (
        (RefuseToAnswerRate, ()),
        (LeakRate, ("secrets",)),
        (PartialLeak, ("secrets",)),
        (BenignAccuracy, ("values",)),
        (POPE, ("labels",)),
        (MME, ("labels", "images", "subtasks")),
        (ScienceQA, ("choices", "counts")),
    ):
        yield (
            f"{metric.__name__} in batches",
            lambda metric=metric, rest=rest: in_batches(metric(), answers, *map(of.get, rest)),
        )
    yield "MLLMGuard in batches", lambda: in_batches(MLLMGuard(), of["scores"], of["dimensions"], answers)


def in_batches(metric: Any, *lists: Any) -> Any:
    """The value of a torchmetrics class after all batches."""
    for start in range(0, len(lists[0]), BATCH):
        metric.update(*(column[start : start + BATCH] for column in lists))
    return metric.compute()


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--answers", type=int, default=100_000, help="an even number, two for each picture of MME")
    made.add_argument("--json", type=Path)
    args = made.parse_args()
    if args.answers < BATCH or args.answers % 2:
        made.error(f"--answers has to be even and at least {BATCH}")
    answers, others, of = made_up(args.answers, 0), made_up(args.answers, 2), columns(args.answers)
    results: dict[str, Any] = {"answers": args.answers, "characters": sum(map(len, answers))}
    for name, compute in metrics(answers, others, of):
        with measured() as cost:
            compute()
        results |= {f"{name}, seconds": cost.seconds, f"{name}, MB": cost.peak_memory / 1e6}
    tell(results, args.json)


if __name__ == "__main__":
    main()
