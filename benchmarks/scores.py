"""Time and memory of scoring stored answers.

    python -m benchmarks.scores --answers 100000 --json FILE

The answers are random: some are refusals, some a word, some a paragraph. For each metric, prints the seconds and the peak
memory above the baseline for all answers in one list, and for the torchmetrics classes in batches of 1000. Judges that run a
model are not included.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import report
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
    functional,
)
from lightning_neuralgate.runtime.cost import measure

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


def random_answers(count: int, seed: int) -> list[str]:
    """Answers that consist of an opening, up to 60 words and a number."""
    rng = random.Random(seed)
    return [
        rng.choice(OPENINGS) + " ".join(rng.choices(WORDS, k=rng.choice((0, 0, 5, 12, 60)))) + str(rng.randrange(10**6))
        for _ in range(count)
    ]


def columns(count: int) -> dict[str, list[Any]]:
    """Further inputs of the metrics: labels, true values, choices and so on."""
    rng = random.Random(1)
    images = [str(index // 2) for index in range(count)]
    return {
        "secrets": [f"{rng.randrange(10**7):07d}" for _ in images],
        "values": rng.choices(("red", "wooden table", "blue"), k=count),
        "labels": rng.choices(("yes", "no"), k=count),
        "images": images,
        "subtasks": [functional.PERCEPTION[int(image) % len(functional.PERCEPTION)] for image in images],
        "choices": rng.choices((0, 1, 2), k=count),
        "counts": [3] * count,
        "scores": rng.choices((0, 1, 2, 3, None), k=count),
        "dimensions": rng.choices(("privacy", "bias", "toxicity", "truthfulness", "legality"), k=count),
    }


def metrics(
    answers: list[str], second_answers: list[str], inputs: dict[str, list[Any]]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each metric and a function that computes it; `second_answers` are from another run."""
    for variant in ("prefix", "gcg", "xstest"):
        yield f"rta_{variant}", lambda variant=variant: functional.refuse_to_answer_rate(answers, variant)
    yield "leak_rate", lambda: functional.leak_rate(answers, inputs["secrets"])
    yield "partial_leak", lambda: functional.partial_leak(answers, inputs["secrets"])
    yield "benign_accuracy", lambda: functional.benign_accuracy(answers, inputs["values"])
    yield "pope", lambda: functional.pope(answers, inputs["labels"])
    yield "mme", lambda: functional.mme(answers, inputs["labels"], inputs["images"], inputs["subtasks"])
    yield "scienceqa", lambda: functional.scienceqa(answers, inputs["choices"], inputs["counts"])
    yield "mllmguard", lambda: functional.mllmguard(inputs["scores"], inputs["dimensions"], answers)
    yield "judge_score", lambda: [functional.judge_score(answer) for answer in answers]
    yield "cohens_kappa", lambda: functional.cohens_kappa(inputs["labels"], inputs["labels"][::-1])
    for name, tally, rest in (
        ("pope", functional.pope_tally, (inputs["labels"],)),
        ("mme", functional.mme_tally, (inputs["labels"], inputs["images"], inputs["subtasks"])),
        ("scienceqa", functional.scienceqa_tally, (inputs["choices"], inputs["counts"])),
    ):
        first, second = tally(answers, *rest), tally(second_answers, *rest)
        yield f"{name}_intervals", lambda first=first: score_intervals(first)
        yield f"{name}_paired", lambda first=first, second=second: paired_differences(first, second)
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
            lambda metric=metric, rest=rest: in_batches(metric(), answers, *map(inputs.get, rest)),
        )
    yield "MLLMGuard in batches", lambda: in_batches(MLLMGuard(), inputs["scores"], inputs["dimensions"], answers)


def in_batches(metric: Any, *lists: Any) -> Any:
    """Update a torchmetrics metric batch by batch, and compute it."""
    for start in range(0, len(lists[0]), BATCH):
        metric.update(*(column[start : start + BATCH] for column in lists))
    return metric.compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--answers", type=int, default=100_000, help="an even number, since MME has two questions per picture"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.answers < BATCH or args.answers % 2:
        parser.error(f"--answers must be even and at least {BATCH}")
    answers, second_answers = (random_answers(args.answers, seed) for seed in (0, 2))
    results: dict[str, Any] = {"answers": args.answers, "characters": sum(map(len, answers))}
    for name, compute in metrics(answers, second_answers, columns(args.answers)):
        with measure() as cost:
            compute()
        results |= {f"{name}, seconds": cost.seconds, f"{name}, MB": cost.peak_memory / 1e6}
    report(results, args.json)


if __name__ == "__main__":
    main()
