"""Attacks on the models of a demo, with `--thorough`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_neuralgate.attacks import chosen_attacks
from lightning_neuralgate.attacks.base import Context
from lightning_neuralgate.attacks.questions import attack_questions
from lightning_neuralgate.attacks.run import AttackRun, ModelAnswers
from lightning_neuralgate.attacks.scoring import EDITED, UNEDITED, score_attacks
from lightning_neuralgate.demo.experiment import TRAINER_OPTIONS, Experiment
from lightning_neuralgate.models.loading import load_model

SECRETS = 48
"""Largest number of secrets that are attacked."""
_FOLDER = "attacks"


def attack_model(experiment: Experiment, arm: str, names: str | None = None) -> ModelAnswers | None:
    """Make attacks on the model in its current state; None if the settings have no attacks.

    The answers are in the folder `attacks/ARM`.

    Args:
        experiment: has the model and the test records.
        arm: name of the model in its current state.
        names: comma-separated names of attacks; None for the quick suite.
    """
    if not experiment.settings.attacks:
        return None
    edited = arm != UNEDITED
    context = Context(
        attack_questions(experiment.test_splits, SECRETS),
        experiment.out / _FOLDER / "pictures",
        load_unedited=(lambda: load_model(experiment.settings.model)[0]) if edited else None,
    )
    trainer = Trainer(
        logger=False, enable_progress_bar=experiment.show_progress, precision=experiment.precision, **TRAINER_OPTIONS
    )
    run = AttackRun(
        experiment.model, experiment.processor, chosen_attacks(names=names), context, experiment.out / _FOLDER / arm, trainer,
        use_cache=not edited, seed=experiment.seed,
    )  # fmt: skip
    run.remove_progress()
    found = run.run()
    run.remove_progress()
    return found


def attack_figures(experiment: Experiment, found: Mapping[str, ModelAnswers | None]) -> dict[str, Any]:
    """Score the attacks on each edited model, compared with the unedited one.

    Args:
        experiment: the experiment.
        found: arm -> what the model did; "unedited" among them.

    Returns:
        Edited arm -> attack -> figures of `AttackScore`, with `came_out` and `secrets`.
    """
    questions = attack_questions(experiment.test_splits, SECRETS)
    unedited = found[UNEDITED]
    figures: dict[str, Any] = {}
    for arm, answers in found.items():
        if arm != UNEDITED and answers is not None and unedited is not None:
            scores = score_attacks(chosen_attacks(), questions, {UNEDITED: unedited, EDITED: answers})
            figures[arm] = {
                score.attack: {**score.figures, "came_out": score.came_out, "secrets": score.secrets}
                for score in scores
            }
    return figures
