"""Attacks on an edited model, scored against known secrets: how much effort makes it reveal them?

The secret is in the picture, so what is measured is effort (queries, words, bits, training steps), never deletion.
"""

from __future__ import annotations

from lightning_neuralgate.attacks.base import Attack
from lightning_neuralgate.attacks.probabilities.logit_lens import LogitLens
from lightning_neuralgate.attacks.probabilities.margin import RefusalMargin
from lightning_neuralgate.attacks.probabilities.sampling import Sampled
from lightning_neuralgate.attacks.probabilities.truth_rank import TruthRankAttack
from lightning_neuralgate.attacks.words.plain import Plain
from lightning_neuralgate.attacks.words.prefill import Prefill, RefuseThenLeak
from lightning_neuralgate.hf.generation import PAPER_SAMPLING

_PAPER_SAMPLING = {name: value for name, value in PAPER_SAMPLING.items() if name != "do_sample"}

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Plain(),
        *(Prefill(depth) for depth in (1, 3, 5, 10)),
        RefuseThenLeak(),
        Sampled(16, {"temperature": 1.0, "top_p": 1.0}, "sampled_16"),
        Sampled(16, _PAPER_SAMPLING, "sampled_paper_16", "full"),
        TruthRankAttack(),
        RefusalMargin(),
        LogitLens(),
    )
}
"""All attacks by name, in the order of tables."""
