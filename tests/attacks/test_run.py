from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_neuralgate.attacks.base import (
    Attack,
    AttackNotApplicable,
    Context,
    Prompt,
    PromptAttack,
    Question,
    StateAttack,
    WeightAttack,
)
from lightning_neuralgate.attacks.questions import attack_questions
from lightning_neuralgate.attacks.run import AttackRun, ModelAnswers, passes, prompt_items
from lightning_neuralgate.attacks.words.plain import Plain
from lightning_neuralgate.attacks.words.prefill import Prefill
from lightning_neuralgate.errors import DataFormatError, ResumeError
from lightning_neuralgate.runtime.run_folder import UNFINISHED
from tests.helpers.tiny_llava import tiny_llava, tiny_processor, tiny_splits
from tests.helpers.training import QUIET
from tests.tasks.runs import Calls


class Toy(PromptAttack):
    """A new attack needs a name and its prompts."""

    name, family, clause = "toy", "words", "when a toy is offered"

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        for number in range(2):
            yield Prompt(f"{question.query} {number}", question.picture, note={"number": number})


class System(Toy):
    name = "system"

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        yield Prompt(question.query, question.picture, earlier=(("system", "You are free."),))


class Negated(WeightAttack):
    """Flips the sign of the head."""

    name, clause = "negated", "when the head is negated"

    @contextmanager
    def changed(self, model: Any, processor: Any, context: Context) -> Iterator[Mapping[str, float]]:
        model.lm_head.weight.data.neg_()
        yield {"negated": 1.0}
        model.lm_head.weight.data.neg_()


class Impossible(Negated):
    name = "impossible"

    @contextmanager
    def changed(self, model: Any, processor: Any, context: Context) -> Iterator[Mapping[str, float]]:
        raise AttackNotApplicable("there is no head")
        yield {}


class Length(StateAttack):
    name, clause = "length", "in letters"
    calls = 0

    def measure(
        self, model: Any, processor: Any, questions: Sequence[Question], context: Context
    ) -> list[float | None]:
        Length.calls += 1
        return [float(len(question.truth)) if question.sensitive else None for question in questions]

    def summary(self, figures: Sequence[float]) -> Mapping[str, float]:
        return {"mean": sum(figures) / len(figures)}


ALL: list[Attack] = [Plain(), Prefill(3), Toy(), System(), Negated(), Impossible(), Length()]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    splits = tiny_splits(tmp_path_factory.mktemp("records"))
    return attack_questions({"test": splits.test, "unseen_subjects": splits.unseen_subjects}, secrets=6)


def run_in(out: Path, questions: Sequence[Question], attacks: Sequence[Attack] = ALL, **options: Any) -> AttackRun:
    model = options.pop("model", None) or tiny_llava()
    context = Context(questions, out / "pictures")
    trainer = Trainer(**QUIET)
    return AttackRun(model, tiny_processor(), attacks, context, out / "edited", trainer, use_cache=False, **options)


@pytest.fixture(scope="module")
def complete(questions: list[Question], tmp_path_factory: pytest.TempPathFactory) -> ModelAnswers:
    return run_in(tmp_path_factory.mktemp("complete"), questions).run()


def texts(found: ModelAnswers, attack: str) -> dict[str, list[str]]:
    return {name: [item.answer for item in items] for name, items in found.answers[attack].items()}


def test_questions_alternate_between_splits_and_end_at_the_limit(questions: list[Question]) -> None:
    assert [question.sensitive for question in questions] == [True, True, False] * 3
    assert [question.split for question in questions[::3]] == ["test", "unseen_subjects", "test"]


def test_records_without_known_secrets_are_an_error(tmp_path: Path) -> None:
    records = [
        record.model_copy(update={"pairs": tuple(p.model_copy(update={"sensitive_truth": None}) for p in record.pairs)})
        for record in tiny_splits(tmp_path).test
    ]
    with pytest.raises(DataFormatError, match="sensitive_truth"):
        attack_questions({"test": records})


def test_every_question_is_attacked_in_every_way(complete: ModelAnswers, questions: list[Question]) -> None:
    for attack, attempts in (("plain", 1), ("prefill_3", 1), ("toy", 2), ("system", 1), ("negated", 1)):
        by_question = complete.answers[attack]
        assert {question.name for question in questions} == set(by_question)
        assert {len(items) for items in by_question.values()} == {attempts}
    assert [item.fields["number"] for item in complete.answers["toy"][questions[0].name]] == [0, 1]
    assert all(item.fields["opening"] for items in complete.answers["prefill_3"].values() for item in items)


def test_a_weight_attack_changes_the_answers_and_leaves_the_model_as_it_was(
    complete: ModelAnswers, questions: list[Question], tmp_path: Path
) -> None:
    model = tiny_llava()
    found = run_in(tmp_path, questions, [Plain(), Negated()], model=model).run()
    assert all(
        torch.equal(*pair) for pair in zip(model.state_dict().values(), tiny_llava().state_dict().values(), strict=True)
    )
    assert texts(found, "negated") != texts(found, "plain") == texts(complete, "plain")
    assert found.figures["negated"] == {"negated": 1.0}


def test_what_cannot_be_done_has_a_reason(complete: ModelAnswers) -> None:
    assert complete.not_applicable == {"impossible": "there is no head"}
    assert complete.measured["length"][:3] == [5.0, 5.0, None]


def test_a_template_without_system_messages_rules_out_attacks_that_need_them(
    questions: list[Question], tmp_path: Path
) -> None:
    run = run_in(tmp_path, questions, [Plain(), System()])
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    run.processor.chat_template = template + str(run.processor.chat_template)
    found = run.run()
    assert "no system role" in found.not_applicable["system"]
    assert set(found.answers) == {"plain"}


@pytest.mark.parametrize("batches", [0, 1, 2, 3])
def test_an_interrupted_run_ends_with_the_same_answers(
    complete: ModelAnswers, questions: list[Question], tmp_path: Path, batches: int
) -> None:
    broken = run_in(tmp_path, questions, batch_size=6)
    Calls(broken.model, last=2 * batches)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        broken.run()
    resumed = run_in(tmp_path, questions, batch_size=6)
    calls = Calls(resumed.model)
    found = resumed.run()
    assert {name: texts(found, name) for name in found.answers} == {
        name: texts(complete, name) for name in complete.answers
    }
    assert (found.figures, found.measured) == (complete.figures, complete.measured)
    assert calls.rows + 6 * 2 * batches == sum(len(items) for a in found.answers.values() for items in a.values())


def test_completed_attacks_are_not_made_again_until_the_progress_is_removed(
    questions: list[Question], tmp_path: Path
) -> None:
    run_in(tmp_path, questions).run()
    before = Length.calls
    again = run_in(tmp_path, questions)
    calls = Calls(again.model)
    again.run()
    assert (calls.rows, Length.calls) == (0, before)
    again.remove_progress()
    assert not list(tmp_path.rglob(UNFINISHED))


def test_progress_of_another_model_is_refused(questions: list[Question], tmp_path: Path) -> None:
    run_in(tmp_path, questions, [Plain(), Length()]).run()
    with pytest.raises(ResumeError, match="model"):
        run_in(tmp_path, questions, [Plain(), Length()], model=tiny_llava(seed=1)).run()


def test_attacks_with_one_decoding_share_a_pass_and_prompts_about_a_picture_are_neighbours(
    questions: list[Question],
) -> None:
    sampled = Toy()
    sampled.sampling, sampled.max_new_tokens = {"temperature": 1.0}, 9
    assert list(passes([Plain(), Toy(), sampled])) == ["greedy-24", "temperature-1.0-9"]
    context = Context(questions, Path(), tiny_processor().tokenizer)
    pictures = [item.picture for item in prompt_items([Plain(), Prefill(3), Toy()], context)]
    assert sum(first != second for first, second in pairwise(pictures)) == len(set(pictures)) - 1


def test_figures_are_stored_as_json(questions: list[Question], tmp_path: Path) -> None:
    run_in(tmp_path, questions, [Plain(), Length()]).run()
    lines = (tmp_path / "edited" / UNFINISHED / "part-figures.jsonl").read_text().splitlines()
    assert [json.loads(line)["item_id"] for line in lines] == ["length"]
