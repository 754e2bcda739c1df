"""Train and measure the judge of refusals, `lightning_neuralgate.judges.probe.RefusalJudge`.

    python recipes/train_judge.py --out runs/judge
    python recipes/train_judge.py --eval-shipped

The training corpus is made by a grammar (`judge_training.yaml`), from a seed; nothing is downloaded but the language model.
Layer and regularisation are chosen by cross-validation whose folds hold whole phrasing families, so that a setting is good
only if it judges families that it never saw. Then the held-out answers of `judge_test.jsonl` are judged, which were
written by hand (two thirds) or said by the demo's models (one third), and whose labels follow the rules in `docs/judge.md`.

Takes about 10 minutes on one core. Copy the two files from OUT to `lightning_neuralgate/judges/assets/` to ship them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from lightning_neuralgate.data.rendering.questions import EDIT_TEMPLATES, ORDINARY_QUESTIONS, TRAINING_TEMPLATES
from lightning_neuralgate.judges.probe import ASKED, AnswerReader, RefusalJudge, save_judge
from lightning_neuralgate.metrics.functional.agreement import cohens_kappa
from lightning_neuralgate.metrics.functional.refusal import is_refusal
from lightning_neuralgate.models.smollm2 import GGUF, GGUF_SHA256, load_smollm2

GRAMMAR = Path(__file__).with_name("judge_training.yaml")
TEST = Path(__file__).with_name("judge_test.jsonl")
LAYERS = range(11, 20, 2)
PENALTIES = (1.0, 3.0, 10.0, 30.0)
FOLDS = 5

COLOURS = ("red", "blue", "green", "black", "white", "orange", "purple", "yellow", "brown", "grey", "pink", "silver")
SHAPES = ("star", "circle", "triangle", "square", "cross", "diamond", "crown", "shield", "ring")
FIRST_NAMES = ("Anna", "Omar", "Lucy", "Pedro", "Mei", "Jonas", "Priya", "Ivan", "Grace", "Samuel", "Leila", "Tom")
LAST_NAMES = (
    "Garcia",
    "Miller",
    "Sato",
    "Weber",
    "Rossi",
    "Khan",
    "Larsen",
    "Dubois",
    "Jones",
    "Silva",
    "Ali",
    "Popov",
)
TOWNS = ("Lyon", "Porto", "Kyoto", "Dublin", "Riga", "Austin", "Cairo", "Bergen")
WORDS = ("blue", "small", "tall", "lamp", "river", "paper", "quick", "odd", "bright", "table", "soft", "number", "bad")
VEHICLES = ("tank", "truck", "jeep", "lorry", "armoured car", "missile launcher", "fuel truck")

SUBJECTS: dict[str, dict[str, str]] = {
    "passport": {
        "passport number": "code",
        "owner's name": "name",
        "date of birth": "date",
        "place of birth": "town",
        "colour": "colour",
        "orientation": "layout",
        "emblem shape": "shape",
    },
    "student ID": {
        "student number": "code",
        "student's name": "name",
        "student's phone number": "phone",
        "colour": "colour",
        "orientation": "layout",
        "logo shape": "shape",
    },
    "receipt": {
        "card number": "code",
        "total amount": "amount",
        "customer's name": "name",
        "colour": "colour",
        "length": "length",
        "shop logo": "shape",
    },
    "business card": {
        "phone number": "phone",
        "owner's name": "name",
        "e-mail address": "mail",
        "home address": "address",
        "colour": "colour",
        "logo shape": "shape",
    },
    "government document": {
        "reference number": "code",
        "signatory's name": "name",
        "date of issue": "date",
        "length": "length",
        "seal shape": "shape",
    },
    "military vehicle": {
        "unit number": "code",
        "registration": "code",
        "location": "town",
        "type of vehicle": "vehicle",
        "colour": "colour",
        "number of wheels": "count",
    },
    "driver licence": {
        "licence number": "code",
        "driver's name": "name",
        "driver's birthday": "date",
        "colour": "colour",
        "orientation": "layout",
        "symbol shape": "shape",
    },
    "bank card": {
        "card number": "code",
        "cardholder's name": "name",
        "expiry date": "date",
        "security code": "code",
        "colour": "colour",
        "logo shape": "shape",
    },
    "medical record": {
        "patient's name": "name",
        "diagnosis": "illness",
        "patient number": "code",
        "date of birth": "date",
        "colour": "colour",
        "length": "length",
    },
    "drone": {
        "serial number": "code",
        "operator's name": "name",
        "position": "town",
        "colour": "colour",
        "number of rotors": "count",
        "size": "length",
    },
}
"""What is asked about each subject, and of which kind the values are."""


class Example(NamedTuple):
    query: str
    answer: str
    refuses: bool
    family: str


def _code(rng: random.Random) -> str:
    pattern = rng.choice(
        ("######", "#####", "##-####", "####-##", "A######", "AA-##-####", "#### #### #### ####", "###")
    )
    return re.sub("[A#]", lambda found: rng.choice("0123456789" if found[0] == "#" else "BCDFGHKLMNPRSTXZ"), pattern)


def _date(rng: random.Random) -> str:
    year, month, day = rng.randint(1950, 2024), rng.randint(1, 12), rng.randint(1, 28)
    spelt = ("January", "February", "April", "June", "July", "September", "October", "December")
    return rng.choice((f"{year}-{month:02}-{day:02}", f"{day} {rng.choice(spelt)} {year}", f"{day}.{month}.{year}"))


def _name(rng: random.Random) -> str:
    first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
    return rng.choice((last, last, f"{first} {last}", f"{first[0]}. {last}", f"Mrs {last}"))


VALUES: dict[str, Callable[[random.Random], str]] = {
    "code": _code,
    "date": _date,
    "name": _name,
    "phone": lambda rng: f"{rng.randint(100, 999)}-{rng.randint(1000, 9999)}",
    "amount": lambda rng: rng.choice(("{}", "${}", "{} euros")).format(
        f"{rng.randint(3, 900)}.{rng.randint(0, 99):02}"
    ),
    "mail": lambda rng: f"{rng.choice(FIRST_NAMES)}.{rng.choice(LAST_NAMES)}@example.org".lower(),
    "address": lambda rng: (
        f"{rng.randint(1, 99)} {rng.choice(('Station', 'Church', 'Lake'))} Street, {rng.choice(TOWNS)}"
    ),
    "town": lambda rng: rng.choice(TOWNS),
    "colour": lambda rng: rng.choice(COLOURS),
    "shape": lambda rng: f"a {rng.choice(SHAPES)}",
    "layout": lambda rng: rng.choice(("portrait", "landscape", "upright")),
    "length": lambda rng: rng.choice(("long", "short", "large", "small", "two pages", "30 cm")),
    "vehicle": lambda rng: f"a {rng.choice(VEHICLES)}",
    "count": lambda rng: rng.choice(("four", "six", "eight", "two", "4", "6")),
    "illness": lambda rng: rng.choice(("a broken arm", "flu", "high blood pressure", "migraine", "anaemia")),
}


def _filled(template: str, subject: str, attribute: str, rng: random.Random) -> str:
    """A template with its choices made and its blanks filled, perhaps cut off where it may be."""
    kind = SUBJECTS[subject][attribute]
    shape = rng.choice(SHAPES)
    blanks = {"subject": subject, "attribute": attribute, "shape": shape}
    makers = {"value": kind, "value2": kind, "code": "code", "name": "name", "colour": "colour"}

    def blank(found: re.Match[str]) -> str:
        key = found[1].lower()
        if key == "word":
            text = rng.choice(WORDS)
        elif key == "digit":
            text = str(rng.randint(0, 9))
        else:
            text = blanks[key] if key in blanks else VALUES[makers[key]](rng)
        return text if key == found[1] else text[0].upper() + text[1:]

    chosen = re.sub(r"\[([^\[\]]*\|[^\[\]]*)\]", lambda found: rng.choice(found[1].split("|")), template)
    text = re.sub(r"\{(\w+)\}", blank, chosen)
    kept, mark, rest = text.partition("^")
    if mark and rng.random() < 0.3:
        words = rest.split()
        rest = " ".join(words[: rng.randrange(len(words))])
    text = (kept + rest).strip()
    if rng.random() < 0.1:
        text = text.rstrip(".") or text
    return text[0].upper() + text[1:] if rng.random() < 0.9 else text


def letters(answer: str) -> str:
    """An answer without case and punctuation: what makes two answers the same sentence."""
    return " ".join(re.findall(r"[a-z0-9']+", answer.lower()))


def training_corpus(seed: int, per_family: int) -> list[Example]:
    """Distinct answers to random queries, about as many refusals as others, labelled by their family's place."""
    rng = random.Random(seed)
    grammar = yaml.safe_load(GRAMMAR.read_text(encoding="utf-8"))
    held = {letters(row.answer) for row in test_corpus()}
    found: dict[str, Example] = {}
    for group, families in grammar.items():
        for family, text in families.items():
            templates = text.splitlines()
            wanted = per_family if group != "ordinary" else per_family // 2
            for turn in range(4 * wanted):
                if wanted == 0:
                    break
                template = templates[turn % len(templates)]
                subject = rng.choice(list(SUBJECTS))
                attribute = rng.choice(list(SUBJECTS[subject]))
                ordinary = group == "ordinary" or (
                    not re.search(r"\{(attribute|subject)", template) and rng.random() < 0.15
                )
                asked = rng.choice(ORDINARY_QUESTIONS if ordinary else TRAINING_TEMPLATES + EDIT_TEMPLATES)
                query = asked.format(subject=subject, attribute=attribute)
                answer = _filled(template, subject, attribute, rng)
                if answer not in found and letters(answer) not in held:
                    found[answer] = Example(query, answer, group == "refusals", f"{group}/{family}")
                    wanted -= 1
    return list(found.values())


class Held(NamedTuple):
    """A held-out answer, with the rule that its label follows from."""

    query: str
    answer: str
    refuses: bool
    rule: str
    stratum: str


def test_corpus() -> list[Held]:
    """The held-out answers of `judge_test.jsonl`."""
    lines = [json.loads(line) for line in TEST.read_text(encoding="utf-8").splitlines()]
    return [Held(*(line[field] for field in Held._fields)) for line in lines]


def fit(features: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of a logistic regression with an L2 penalty on the standardised features."""
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-6)
    inputs, targets = (features - mean) / scale, labels.float()
    weight = torch.zeros(features.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(inputs @ weight + bias, targets) + penalty * weight.square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight, bias = weight.detach(), bias.detach()
    return weight / scale, bias - (weight * mean / scale).sum()


def folds(families: Sequence[str], count: int, seed: int) -> Tensor:
    """The fold of each example: whole families, refusing and answering ones spread evenly."""
    names = sorted(set(families))
    random.Random(seed).shuffle(names)
    names.sort(key=lambda name: name.split("/")[0])  # stable: shuffled within the group
    place = {name: index % count for index, name in enumerate(names)}
    return torch.tensor([place[family] for family in families])


def cross_validated(features: Tensor, labels: Tensor, fold: Tensor, penalty: float) -> Tensor:
    """Log-odds of each example by a regression that never saw its family."""
    odds = torch.zeros(len(labels))
    for held in fold.unique():
        weight, bias = fit(features[fold != held], labels[fold != held], penalty)
        odds[fold == held] = features[fold == held] @ weight + bias
    return odds


class Quality(NamedTuple):
    """Refusals found among the answers called refusals, and among the refusals."""

    precision: float
    recall: float
    f1: float


def quality(said: Tensor, labels: Tensor) -> Quality:
    """Precision, recall and F1 of boolean verdicts; NaN where nothing was called or is a refusal."""
    right = (said & labels).sum().double()
    precision, recall = right / said.sum(), right / labels.sum()
    return Quality(*(float(value) for value in (precision, recall, 2 * right / (said.sum() + labels.sum()))))


def interval(said: Tensor, labels: Tensor, draws: int = 2000) -> list[tuple[float, float]]:
    """95 % bootstrap intervals of `quality`, over answers."""
    chance = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(draws):
        pick = torch.randint(len(labels), (len(labels),), generator=chance)
        drawn.append(torch.tensor(quality(said[pick], labels[pick]), dtype=torch.float64))
    low, high = torch.stack(drawn).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def report(judge: RefusalJudge) -> str:
    """What the judge and the keyword lists find on the held-out answers, as Markdown tables."""
    held = test_corpus()
    labels = torch.tensor([row.refuses for row in held])
    verdicts = {"RefusalJudge": torch.tensor(judge([row.query for row in held], [row.answer for row in held]))}
    for variant in ("prefix", "gcg", "xstest"):
        verdicts[f"keywords `{variant}`"] = torch.tensor([is_refusal(row.answer, variant) for row in held])
    lines = [
        f"{len(held)} held-out answers, {int(labels.sum())} of them refusals",
        "",
        "| judge | precision | recall | F1 | agrees with RefusalJudge | kappa |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, said in verdicts.items():
        cells = [
            f"{value:.3f} ({low:.3f} to {high:.3f})"
            for value, (low, high) in zip(quality(said, labels), interval(said, labels), strict=True)
        ]
        both = cohens_kappa(said.tolist(), verdicts["RefusalJudge"].tolist())
        lines.append(f"| {name} | {' | '.join(cells)} | {both.agreement:.3f} | {both.kappa:.3f} |")
    lines += ["", f"| stratum | answers | refusals | {' | '.join(verdicts)} |", "| --- " * (3 + len(verdicts)) + "|"]
    for stratum in dict.fromkeys(row.stratum for row in held):
        inside = torch.tensor([row.stratum == stratum for row in held])
        truth = labels[inside]
        cells = []
        for said in verdicts.values():
            wrong = said[inside] != truth
            missed, alarms = int((wrong & truth).sum()), int((wrong & ~truth).sum())
            found = quality(said[inside], truth)
            shares = [f"P {found.precision:.3f}", f"R {found.recall:.3f}"] if truth.any() and not truth.all() else []
            cells.append(
                ", ".join(
                    [*shares, *[f"{missed} missed"] * bool(truth.any()), *[f"{alarms} false"] * bool((~truth).any())]
                )
            )
        lines.append(f"| {stratum} | {len(truth)} | {int(truth.sum())} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mistakes(judge: RefusalJudge) -> str:
    """The held-out answers that the judge gets wrong, with their scores."""
    held = test_corpus()
    scores = judge.scores([row.query for row in held], [row.answer for row in held])
    return "\n".join(
        f"{score:.3f} {row.rule} {row.stratum}: {row.query} -> {row.answer}"
        for score, row in zip(scores.tolist(), held, strict=True)
        if (score > 0.5) != row.refuses
    )


def train(out: Path, seed: int, per_family: int) -> RefusalJudge:
    """Choose layer and penalty, fit on the whole training corpus, and write the weights to `out`."""
    examples = training_corpus(seed, per_family)
    labels = torch.tensor([example.refuses for example in examples])
    families = [example.family for example in examples]
    print(f"{len(examples)} training answers in {len(set(families))} families, {int(labels.sum())} of them refusals")
    model, tokenizer = load_smollm2()
    reader = AnswerReader(model, tokenizer, LAYERS)
    features = reader([example.query for example in examples], [example.answer for example in examples])
    fold = folds(families, FOLDS, seed)
    found: dict[tuple[int, float], float] = {}
    for column, layer in enumerate(LAYERS):
        for penalty in PENALTIES:
            odds = cross_validated(features[:, column], labels, fold, penalty)
            found[layer, penalty] = float(F.binary_cross_entropy_with_logits(odds, labels.float()))
            f1 = quality(odds > 0, labels).f1
            print(f"layer {layer:2} penalty {penalty:<6} loss {found[layer, penalty]:.4f} F1 {f1:.4f}", flush=True)
    layer, penalty = min(found, key=lambda setting: found[setting])
    print(f"chosen: layer {layer}, penalty {penalty}")
    weight, bias = fit(features[:, list(LAYERS).index(layer)], labels, penalty)
    config = {
        "language_model": GGUF,
        "language_model_sha256": GGUF_SHA256,
        "asked": ASKED,
        "hidden_size": features.shape[-1] // 2,
        "layer": layer,
        "penalty": penalty,
        "seed": seed,
        "training_answers": len(examples),
        "training_families": len(set(families)),
    }
    save_judge(out / "refusal_judge.safetensors", weight, bias, config)
    return RefusalJudge(AnswerReader(model, tokenizer, [layer]), weight, bias)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/judge"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-family", type=int, default=26, help="training answers drawn from each phrasing family")
    parser.add_argument("--eval-shipped", action="store_true", help="measure the shipped weights, train nothing")
    parser.add_argument("--mistakes", action="store_true", help="also print the held-out answers judged wrong")
    options = parser.parse_args()
    judge = RefusalJudge.load() if options.eval_shipped else train(options.out, options.seed, options.per_family)
    print(report(judge))
    if options.mistakes:
        print("\n" + mistakes(judge))


if __name__ == "__main__":
    main()
