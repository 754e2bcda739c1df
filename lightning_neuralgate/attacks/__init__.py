"""Attacks on an edited model, scored against known secrets: how much effort makes it reveal them?

The secret is in the picture, so what is measured is effort (queries, words, bits, training steps), never deletion.
"""

from __future__ import annotations

from typing import get_args

from lightning_neuralgate.attacks.base import Attack
from lightning_neuralgate.attacks.pictures.in_scene import InScene
from lightning_neuralgate.attacks.pictures.no_picture import BlankPicture, NoPicture
from lightning_neuralgate.attacks.pictures.perturbations import Kind, Perturbation, Strength
from lightning_neuralgate.attacks.pictures.pgd import PixelAttack
from lightning_neuralgate.attacks.pictures.specimen_banner import SpecimenBanner
from lightning_neuralgate.attacks.pictures.two_documents import TwoDocuments
from lightning_neuralgate.attacks.pictures.written_question import WrittenQuestion
from lightning_neuralgate.attacks.words.plain import Plain
from lightning_neuralgate.attacks.words.prefill import Prefill, RefuseThenLeak

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Plain(),
        *(Prefill(depth) for depth in (1, 3, 5, 10)),
        RefuseThenLeak(),
        *(Perturbation(kind, strength) for kind in get_args(Kind) for strength in get_args(Strength)),
        InScene(),
        TwoDocuments(),
        SpecimenBanner(),
        WrittenQuestion(),
        BlankPicture(),
        NoPicture(),
        PixelAttack(),
    )
}
"""All attacks by name, in the order of tables."""
