"""The tokens of a prompt: which are the subject, and at which a gate acts during an edit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from lightning_neuralgate.attacks.base import Prompt
from lightning_neuralgate.data.collator import PrivacyPairCollator
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.gate.neural_gate import DEFAULT_TAU, NeuralGate
from lightning_neuralgate.gate.positions import SUBJECT_SCOPES, Scope, scope_positions
from lightning_neuralgate.gate.subjects import SubjectsInText
from lightning_neuralgate.play.asking import query_row
from lightning_neuralgate.play.pictures import AskedPicture


class Token(NamedTuple):
    """A token, or a run of image tokens.

    Attributes:
        text: its text.
        subject: whether it belongs to the subject's last mention.
        gated: whether the gate acts at it.
        number: number of tokens, above 1 for image tokens.
    """

    text: str
    subject: bool
    gated: bool
    number: int = 1


class TokenView(NamedTuple):
    """The tokens of a prompt.

    Attributes:
        tokens: the tokens, with image tokens taken together.
        subject: the subject that the prompt names; None if it names none that is known.
        scope: where the gate acts.
        open_rows: layer -> (rows whose activity rate is above the threshold, all rows) of that subject in a gate.
    """

    tokens: list[Token]
    subject: str | None
    scope: str
    open_rows: dict[int, tuple[int, int]]


def token_view(
    prompt: Prompt,
    picture: AskedPicture,
    processor: Any,
    scope: Scope = "subject_last",
    gate: NeuralGate | None = None,
    tau: float = DEFAULT_TAU,
) -> TokenView:
    """Return the tokens of a prompt about a picture.

    Args:
        prompt: the prompt.
        picture: the picture.
        processor: the model's processor.
        scope: the scope of the gate. For those that compare several prompts, no token is marked.
        gate: a gate, whose subjects are looked for; else the shipped ones.
        tau: threshold of the gate.
    """
    batch = PrivacyPairCollator(processor)([query_row(prompt, picture)])
    tokenizer = getattr(processor, "tokenizer", processor)
    mask, (subject,) = SubjectsInText(tokenizer, _subjects(picture, gate))({"input_ids": batch["input_ids"]})
    gated = scope_positions(scope, mask) if scope in SUBJECT_SCOPES and subject else mask & False
    ids, image_id = batch["input_ids"][0].tolist(), getattr(processor, "image_token_id", None)
    columns = zip(ids, mask[0].tolist(), gated[0].tolist(), strict=True)
    tokens: list[Token] = []
    for (is_image, in_subject, in_gate), run in groupby(
        columns, key=lambda column: (column[0] == image_id, *column[1:])
    ):
        run_ids = [column[0] for column in run]
        if is_image:
            tokens.append(Token("picture", in_subject, in_gate, len(run_ids)))
        else:
            tokens += [Token(_text(tokenizer, one), in_subject, in_gate) for one in run_ids]
    layers = gate.layers if gate is not None and subject in gate.subjects else []
    rates = {layer: gate.mask(str(subject), layer, tau) for layer in layers} if gate is not None else {}
    return TokenView(tokens, subject, scope, {layer: (int(rows.sum()), len(rows)) for layer, rows in rates.items()})


def _subjects(picture: AskedPicture, gate: NeuralGate | None) -> Sequence[str]:
    shipped = [load_subject_spec(name).subject for name in shipped_subjects()]
    return list(dict.fromkeys([*([picture.subject] if picture.subject else []), *(gate.subjects if gate else shipped)]))


def _text(tokenizer: Any, token_id: int) -> str:
    return str(tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False))
