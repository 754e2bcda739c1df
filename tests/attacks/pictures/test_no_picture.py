from __future__ import annotations

from collections.abc import Callable

from lightning_neuralgate.attacks import ATTACKS
from lightning_neuralgate.attacks.base import Context, PromptAttack, Question
from lightning_neuralgate.data.image_files import read_image


def test_the_value_is_in_no_prompt_of_a_sanity_check(ask: Callable[..., Question], context: Context) -> None:
    checks = {name: attack for name, attack in ATTACKS.items() if isinstance(attack, PromptAttack) and attack.sanity}
    assert list(checks) == ["blank_picture", "no_picture"]
    (blank,), (without,) = (attack.prompts(ask(), context) for attack in checks.values())
    assert without.picture is None
    assert blank.picture is not None
    assert read_image(blank.picture).getcolors() == [(288 * 288, (128, 128, 128))]
    assert blank.text == without.text == ask().query
    (other,) = checks["blank_picture"].prompts(context.questions[1], context)
    assert other.picture == blank.picture
