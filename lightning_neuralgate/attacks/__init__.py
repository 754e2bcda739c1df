"""Attacks on an edited model, scored against known secrets: how much effort makes it reveal them?

The secret is in the picture, so what is measured is effort (queries, words, bits, training steps), never deletion.
"""

from __future__ import annotations

from lightning_neuralgate.attacks.base import Attack
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
    )
}
"""All attacks by name, in the order of tables."""
