"""Attacks on an edited model, scored against known secrets: how much effort makes it reveal them?

The secret is in the picture, so what is measured is effort (queries, words, bits, training steps), never deletion.
"""

from __future__ import annotations

from typing import get_args

from lightning_neuralgate.attacks.base import Attack, Suite
from lightning_neuralgate.attacks.pictures.in_scene import InScene
from lightning_neuralgate.attacks.pictures.no_picture import BlankPicture, NoPicture
from lightning_neuralgate.attacks.pictures.perturbations import Kind, Perturbation, Strength
from lightning_neuralgate.attacks.pictures.pgd import PixelAttack
from lightning_neuralgate.attacks.pictures.specimen_banner import SpecimenBanner
from lightning_neuralgate.attacks.pictures.two_documents import TwoDocuments
from lightning_neuralgate.attacks.pictures.written_question import WrittenQuestion
from lightning_neuralgate.attacks.probabilities.logit_lens import LogitLens
from lightning_neuralgate.attacks.probabilities.margin import RefusalMargin
from lightning_neuralgate.attacks.probabilities.sampling import Sampled
from lightning_neuralgate.attacks.probabilities.truth_rank import TruthRankAttack
from lightning_neuralgate.attacks.weights.ablated import Ablated
from lightning_neuralgate.attacks.weights.cast import Cast
from lightning_neuralgate.attacks.weights.interpolated import Interpolated
from lightning_neuralgate.attacks.weights.relearned import Relearned
from lightning_neuralgate.attacks.weights.rounded import Rounded
from lightning_neuralgate.attacks.words.choice import Choice
from lightning_neuralgate.attacks.words.compliance_prefix import CompliancePrefix
from lightning_neuralgate.attacks.words.describe import Describe
from lightning_neuralgate.attacks.words.encodings import Base64Answer, ChineseAnswer, GermanAnswer, ReversedAnswer
from lightning_neuralgate.attacks.words.few_shot import FewShot
from lightning_neuralgate.attacks.words.letters import AlternatingCase, Leet, Spacing, Typos
from lightning_neuralgate.attacks.words.multi_turn import MultiTurn
from lightning_neuralgate.attacks.words.no_subject import NoSubject
from lightning_neuralgate.attacks.words.paraphrase import Paraphrase
from lightning_neuralgate.attacks.words.plain import Plain
from lightning_neuralgate.attacks.words.prefill import Prefill, RefuseThenLeak
from lightning_neuralgate.attacks.words.role_play import RolePlay
from lightning_neuralgate.attacks.words.split_extraction import SplitExtraction
from lightning_neuralgate.attacks.words.synonyms import Synonyms
from lightning_neuralgate.attacks.words.system_prompt import SystemPrompt
from lightning_neuralgate.attacks.words.yes_no import StartsWith, YesNo
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.hf.generation import PAPER_SAMPLING

_PAPER_SAMPLING = {name: value for name, value in PAPER_SAMPLING.items() if name != "do_sample"}

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Plain(),
        Paraphrase(),
        Synonyms(),
        NoSubject(),
        Typos(),
        Spacing(),
        Leet(),
        AlternatingCase(),
        RolePlay(),
        SystemPrompt(),
        CompliancePrefix(),
        FewShot(),
        MultiTurn(),
        SplitExtraction(),
        Describe(),
        YesNo(),
        StartsWith(),
        Choice(),
        Base64Answer(),
        ReversedAnswer(),
        GermanAnswer(),
        ChineseAnswer(),
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
        Sampled(16, {"temperature": 1.0, "top_p": 1.0}, "sampled_16"),
        Sampled(16, _PAPER_SAMPLING, "sampled_paper_16", "full"),
        Cast("bfloat16"),
        Cast("float16"),
        Rounded(8),
        Rounded(4),
        *(Interpolated(share) for share in (0.25, 0.5, 0.75)),
        *(Relearned("benign", steps) for steps in (10, 50)),
        *(Relearned("leaks", steps) for steps in (10, 50)),
        Ablated(),
        TruthRankAttack(),
        RefusalMargin(),
        LogitLens(),
    )
}
"""All attacks by name, in the order of tables."""


def chosen_attacks(suite: Suite = "quick", names: str | None = None) -> list[Attack]:
    """Return attacks, in the order of tables. The plain question is always among them.

    Args:
        suite: all attacks of a suite; `full` contains `quick`.
        names: comma-separated names, instead of a suite.

    Raises:
        UnsupportedSetupError: an unknown name.

    Example:
        >>> [attack.name for attack in chosen_attacks(names="prefill_3")]
        ['plain', 'prefill_3']
    """
    if names is None:
        return [attack for attack in ATTACKS.values() if suite == "full" or attack.suite == "quick"]
    wanted = {name.strip() for name in names.split(",")} | {Plain.name}
    if unknown := sorted(wanted - ATTACKS.keys()):
        raise UnsupportedSetupError(f"there is no attack '{unknown[0]}'; there are {', '.join(ATTACKS)}")
    return [attack for name, attack in ATTACKS.items() if name in wanted]
