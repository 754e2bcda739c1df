"""Attacks on an edited model, scored against known secrets: how much effort makes it reveal them?

The secret is in the picture, so what is measured is effort (queries, words, bits, training steps), never deletion.
"""

from __future__ import annotations

from lightning_neuralgate.attacks.base import Attack
from lightning_neuralgate.attacks.words.plain import Plain
from lightning_neuralgate.attacks.words.prefill import Prefill, RefuseThenLeak

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Plain(),
        *(Prefill(depth) for depth in (1, 3, 5, 10)),
        RefuseThenLeak(),
    )
}
"""All attacks by name, in the order of tables."""
