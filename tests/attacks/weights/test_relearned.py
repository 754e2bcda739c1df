from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_neuralgate.attacks.base import AttackNotApplicable
from lightning_neuralgate.attacks.weights.changing import plain_row
from lightning_neuralgate.attacks.weights.relearned import Relearned
from lightning_neuralgate.data.collator import PrivacyPairCollator
from lightning_neuralgate.hf.forward import batch_nll
from tests.attacks.weights.conftest import Run

PROJECTION = "model.language_model.layers.{}.mlp.down_proj.weight"


def loss(run: Run, trained: bool) -> float:
    """Return the loss of true answers about the receipts, or about the passports, which are not trained on."""
    questions = [q for q in run.context.questions if q.sensitive and (q.subject == "receipt") == trained]
    rows = [plain_row(q, f"The {q.attribute} is {q.truth}.") for q in questions]
    with torch.no_grad():
        return float(batch_nll(run.model, PrivacyPairCollator(run.processor)(rows)).mean())


def test_training_on_leaks_lowers_their_loss_and_skips_their_subjects(run: Run) -> None:
    attack = Relearned("leaks", 5)
    skipped = {q.subject for q in run.context.questions if attack.skips(q, run.context)}
    assert skipped == {"receipt"}
    assert not any(attack.skips(q, run.context) for q in run.context.questions if not q.sensitive)
    before, bits = loss(run, trained=True), run.bits()
    with run.changed(attack) as figures:
        assert loss(run, trained=True) < before
        assert run.changed_names(bits) == {PROJECTION.format(2)}
        assert figures == {"steps": 5, "trained_on": 4}


def test_training_is_deterministic_and_a_short_run_is_the_start_of_a_long_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, batches = [], []

    class Collator(PrivacyPairCollator):
        def __call__(self, rows):  # type: ignore[no-untyped-def]
            batches.append(rows)
            return super().__call__(rows)

    monkeypatch.setattr("lightning_neuralgate.attacks.weights.relearned.PrivacyPairCollator", Collator)
    for steps in (3, 3, 2):
        with run.changed(Relearned("benign", steps)):
            results.append(run.bits())
    assert results[0] == results[1] != results[2]
    assert batches[:3] == batches[3:6]
    assert batches[:2] == batches[6:]


def test_benign_answers_are_the_unedited_models_on_every_second_question(run: Run) -> None:
    benign = [q for q in run.context.questions if not q.sensitive]
    attack = Relearned("benign", 1)
    assert [attack.skips(q, run.context) for q in benign] == [True, False] * (len(benign) // 2)
    with run.changed(attack) as figures:
        assert figures["trained_on"] == len(benign) / 2
    with pytest.raises(AttackNotApplicable, match="no unedited model"), run.without_unedited().changed(attack):
        pass


def test_all_projections_train_if_the_edit_is_unknown_also_in_half_precision(run: Run) -> None:
    run.model.to(torch.bfloat16)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with run.without_unedited().changed(Relearned("leaks", 10)):
        changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {PROJECTION.format(layer) for layer in range(3)}


def test_leaks_need_two_subjects(run: Run) -> None:
    run.context = replace(run.context, questions=[q for q in run.context.questions if q.subject == "receipt"])
    with pytest.raises(AttackNotApplicable, match="two subjects"), run.changed(Relearned("leaks", 1)):
        pass


def test_a_loss_that_is_not_finite_ends_the_attack(run: Run) -> None:
    run.model.lm_head.weight.data.fill_(float("nan"))
    before = run.bits()
    with pytest.raises(AttackNotApplicable, match="training loss is nan"), run.changed(Relearned("leaks", 1)):
        pass
    assert run.bits() == before
