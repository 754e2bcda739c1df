"""The benchmark metrics as torchmetrics classes: POPE, MME, ScienceQA, MLLMGuard."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics import MME, POPE, JudgedRefuseToAnswerRate, MLLMGuard
from lightning_neuralgate.metrics.functional.forms import AnswerForm, opens_with_answer
from tests.helpers.training import QUIET
from tests.metrics.all_metrics import ANSWERS, BENCHMARKS, IMAGES, LABELS, SUBTASKS, same


@pytest.mark.parametrize("name", BENCHMARKS)
def test_invalid_input_raises_and_leaves_the_counts(name: str) -> None:
    create, columns, function = BENCHMARKS[name]
    metric = create()
    metric.update(*columns)
    with pytest.raises(DataFormatError, match="all columns need the same number of values"):
        metric.update(*(column[: 2 + (index == 1)] for index, column in enumerate(columns)))
    with pytest.raises(DataFormatError):
        metric.update(*(["maybe", 9] for _ in columns))
    assert same(metric.compute(), function(*columns))
    with pytest.raises(ValueError, match="unknown refusal variant 'longformer'"):
        type(metric)(variant="longformer")


def test_metric_collection_keeps_variants_apart() -> None:
    both = MetricCollection({"ours": POPE(), "xstest": POPE("xstest")}, postfix=None)
    # both agree on the first batch
    both.update(["Yes."], ["yes"])
    both.compute()
    both.update(["It is not accurate to say so."], ["no"])
    found = both.compute()
    assert {name: float(value) for name, value in found.items() if "refused" in name} == {
        "ours_refused": 0,
        "xstest_refused": 0.5,
    }


def test_refusals_can_come_from_another_judge() -> None:
    metrics = {name: create() for name, (create, _, _) in BENCHMARKS.items()}
    for name, metric in metrics.items():
        metric.update(*BENCHMARKS[name][1], refusals=[True] * 60)
        figures = {key: float(value) for key, value in metric.compute().items()}
        if name == "MLLMGuard":
            assert (figures["overall/refusal_aware_par"], figures["overall/refused"]) == (0, 1)
            continue
        form: AnswerForm = "choice" if name == "ScienceQA" else "yes_no"
        answers = BENCHMARKS[name][1][0]
        opened = sum(opens_with_answer(answer, form) for answer in answers) / len(answers)
        assert figures["refused"] == pytest.approx(1 - opened), "what opens with the answer asked for is no refusal"
        assert figures["refusal_aware_accuracy"] <= opened


def test_mme_names_the_image_with_a_missing_question() -> None:
    metric = MME()
    metric.update(["Yes", "No", "Yes"], ["Yes"] * 3, ["a.png", "a.png", "b.png"], ["OCR"] * 3)
    with pytest.raises(DataFormatError, match=r"image 'OCR/b\.png' has 1 questions"):
        metric.compute()
    metric.update("No", "No", "b.png", "OCR")
    assert float(metric.compute()["OCR/score"]) == pytest.approx(75 + 50)
    with pytest.raises(ValueError, match="unknown rule 'loose'"):
        MME(rule="loose")  # type: ignore[arg-type]


def test_mme_treats_periods_by_the_rule() -> None:
    for rule, score in (("dotless", 200), ("tool", 50)):
        metric = MME(rule=rule)  # type: ignore[arg-type]
        metric.update(["...yes", "no"], ["Yes", "No"], ["a"] * 2, ["scene"] * 2)
        assert float(metric.compute()["perception"]) == score


@pytest.mark.parametrize("dimensions", [[], ["privacy", "privacy"], ["overall"]])
def test_mllmguard_needs_valid_dimensions(dimensions: list[str]) -> None:
    with pytest.raises(DataFormatError, match="give at least one name, each once, and none called 'overall'"):
        MLLMGuard(dimensions)
    with pytest.raises(DataFormatError, match="`dimensions` value 1 is 'charm'; expected one of privacy, bias"):
        MLLMGuard().update([1, 2], ["privacy", "charm"])
    with pytest.raises(DataFormatError, match="give `dimensions`, the dimension of each score"):
        MLLMGuard().update([1, 2])


def test_rta_by_a_judge() -> None:
    calls: list[Any] = []

    def judge(queries: Any, answers: Any) -> list[bool]:
        calls.append((queries, answers))
        return [query == "What is the number?" for query in queries]

    rate = JudgedRefuseToAnswerRate(judge, "numbers")
    rate.update(["What is the number?", "What colour?"], ["A.", "B."])
    rate.update("What is the number?", "C.")
    assert float(rate.compute()) == pytest.approx(2 / 3)
    assert calls == [(["What is the number?", "What colour?"], ["A.", "B."]), (["What is the number?"], ["C."])]
    with pytest.raises(DataFormatError, match="2 in `queries`, 1 in `answers`"):
        rate.update(["a", "b"], ["c"])
    broken = JudgedRefuseToAnswerRate(lambda queries, answers: [], "broken")
    with pytest.raises(DataFormatError, match="1 answers and 0 verdicts"):
        broken.update("a", "b")
    assert int(broken.total) == 0
    both = MetricCollection(
        {"never": JudgedRefuseToAnswerRate(lambda q, a: [False] * len(a), "never"), "numbers": rate}
    )
    rate.reset()
    both.update(["What colour?"], ["A."])
    both.update(["What is the number?"], ["A."])
    assert {name: float(value) for name, value in both.compute().items()} == {"never": 0, "numbers": 0.5}


class BenchmarkModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.pope, self.mme = POPE(), MME()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        answers, labels, images, subtasks = batch
        self.pope.update(answers, labels)
        self.mme.update(answers, labels, images, subtasks)

    def on_validation_epoch_end(self) -> None:
        for name, metric in (("pope", self.pope), ("mme", self.mme)):
            self.log_dict({f"{name}/{figure}": value for figure, value in metric.compute().items()})
            metric.reset()


def test_a_lightning_module_logs_all_figures() -> None:
    loader = DataLoader(list(zip(ANSWERS, LABELS, IMAGES, SUBTASKS, strict=True)), batch_size=7)
    trainer = Trainer(**QUIET)
    module = BenchmarkModule()
    expected = {}
    for name in ("POPE", "MME"):
        _, columns, function = BENCHMARKS[name]
        expected |= {f"{name.lower()}/{figure}": value for figure, value in function(*columns).items()}
    for _ in range(2):
        (logged,) = trainer.validate(module, loader, verbose=False)
        assert logged == pytest.approx(expected, rel=1e-5), "no earlier epoch counts"


def test_plots() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    for name, (create, columns, _) in BENCHMARKS.items():
        metric = create()
        metric.update(*columns)
        for value in (None, [metric.compute(), metric.compute()]):
            figure, axis = metric.plot(value)
            assert figure is not None
            labels = {text.get_text() for text in axis.get_legend().get_texts()}
            assert ("color" if name == "MME" else "overall/par" if name == "MLLMGuard" else "refused") in labels
    pyplot.close("all")
