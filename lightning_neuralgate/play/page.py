"""What the page of `neuralgate play` shows. All text of models, data and users is escaped."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.errors import MissingDependencyError
from lightning_neuralgate.gate.neural_gate import DEFAULT_TAU, NeuralGate
from lightning_neuralgate.gate.positions import SCOPES, SUBJECT_SCOPES, Scope
from lightning_neuralgate.play.asking import FORMS, LONGEST_QUESTION, ask, marked, prompts_of, quick_questions
from lightning_neuralgate.play.models import LoadedModel
from lightning_neuralgate.play.pictures import AskedPicture
from lightning_neuralgate.play.tokens import token_view
from lightning_neuralgate.runtime.text import printable


class Playground:
    """A loaded model, and how its prompts are shown.

    Args:
        loaded: the model.
        gate: the gate that the edit was made with, whose open rows are counted.
        scope: where the gate acts; by default as in the edit file, or at the subject's last token.
        tau: the gate's threshold.

    Raises:
        GateMismatchError: the gate was located in another model.
    """

    def __init__(
        self, loaded: LoadedModel, gate: NeuralGate | None = None, scope: Scope | None = None, tau: float = DEFAULT_TAU
    ) -> None:
        if gate is not None:
            gate.check_fits(loaded.model)
        recorded: Any = loaded.scope
        self.loaded, self.gate, self.tau = loaded, gate, tau
        self.scope: Scope = scope or (recorded if recorded in SCOPES else "subject_last")

    def answer(self, picture: AskedPicture, question: str, form: str) -> str:
        """Ask, and return the HTML of the answers and of the tokens.

        Raises:
            NeuralGateError: see `prompts_of`, and the collator.
        """
        prompts = prompts_of(question, picture, form, self.loaded.tokenizer)
        exchanges = ask(self.loaded, picture, prompts, question)
        view = token_view(prompts[0], picture, self.loaded.processor, self.scope, self.gate, self.tau)
        return _render(
            "answers", exchanges=exchanges, question=question.strip(), view=view, tau=self.tau,
            acts=self.scope in SUBJECT_SCOPES,
        )  # fmt: skip


def render_page(playground: Playground) -> str:
    """Return the HTML of the page."""
    return _render(
        "page",
        versions=playground.loaded.versions,
        subjects={name: load_subject_spec(name).subject for name in shipped_subjects()},
        forms={name: attack.clause for name, attack in FORMS.items()},
        longest=LONGEST_QUESTION,
    )


def render_picture(picture: AskedPicture, key: str) -> str:
    """Return the HTML of a picture, by its key, and of the questions to choose from."""
    return _render("picture", picture=picture, key=key, questions=quick_questions(picture))


def _render(name: str, **values: Any) -> str:
    return str(_environment().get_template(f"{name}.html.jinja").render(values))


@lru_cache(maxsize=1)
def _environment() -> Any:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingDependencyError("the page needs jinja2: pip install 'lightning-neuralgate[play]'") from error
    folder = files("lightning_neuralgate.play")
    loader = FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"visible": _visible, "marked": marked}
    return environment


def _visible(text: object) -> str:
    return printable(str(text))
