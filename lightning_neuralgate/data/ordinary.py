"""Ordinary questions in every form and wordings of their own, about scenes, about documents and without a picture.

An edit that keeps their answers (`render_retention`) sees each form of question that it should not refuse. Questions about
documents ask for the benign attributes that an edit uses, never for a sensitive or an unseen one. No wording is a test's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from PIL import Image

from lightning_neuralgate.data.plain_text import open_requests, reworded_facts
from lightning_neuralgate.data.rendering.dataset import EDIT_SUBJECTS, picture_seed
from lightning_neuralgate.data.rendering.draw import ordinary_picture, render
from lightning_neuralgate.data.rendering.questions import TRAINING_TEMPLATES, public_questions
from lightning_neuralgate.data.rendering.spec import SubjectSpec, load_subject_spec
from lightning_neuralgate.data.scenes.draw import draw_scene
from lightning_neuralgate.data.scenes.questions import Turn, choice_turn, document_turns, scene_turns, yes_no_turn
from lightning_neuralgate.data.scenes.spec import SceneSpec, load_scene_spec, shipped_places

Form = Literal["yes_no", "choice", "count", "attribute", "caption", "reading", "public", "chat", "text"]
FORMS: tuple[Form, ...] = get_args(Form)
"""Forms of ordinary questions: `attribute` asks for a colour, a position or a benign attribute of a document, `reading` for
public writing, `public` for public attributes in the edit's own words; `chat` is a question behind another one with its
answer, `text` a fact or a request without a picture."""
_FORM_OF_KIND: dict[str, Form] = {
    **dict.fromkeys(("existence", "category", "side", "relation", "colour_existence"), "yes_no"),
    **dict.fromkeys(("kind_yes_no", "count_yes_no", "colour_yes_no", "yes_no_value", "yes_no_fact"), "yes_no"),
    **dict.fromkeys(("colour", "position", "attribute"), "attribute"),
    **dict.fromkeys(("caption", "kind"), "caption"),
    "count": "count",
    "read": "reading",
    "public": "public",
    "fact": "text",
}
_OPENINGS_OF_TESTS = ("Is there", "Are there", "Count the", "Which of these", "Would you say", "Give a short caption")
_CLOSINGS_OF_TESTS = ("Reply with yes or no.",)
"""Openings and closings of test questions that `scenes.wordings` has, too."""
_TRIES = 20
_REDRAWS = 3
"""Tries to find a question that was not drawn before; some forms have few wordings."""
_TURNS = 24


class OrdinaryQuestion(NamedTuple):
    """A drawn question: its form, the picture, or None, and the messages before it, as in `QueryRow.earlier`."""

    form: Form
    question: str
    image: Image.Image | None
    earlier: tuple[tuple[str, str], ...] = ()


def check_forms(without: Collection[str]) -> None:
    """Check names of forms to leave out.

    Raises:
        ValueError: a form does not exist, or none is left.
    """
    if unknown := sorted(set(without) - set(FORMS)):
        raise ValueError(f"there is no form of question '{unknown[0]}'; the forms are {', '.join(FORMS)}")
    if set(FORMS) == set(without):
        raise ValueError("no form of question is left; leave out fewer")


def ordinary_questions(
    seed: int, count: int, without: Collection[str] = (), subjects: Sequence[str | Path] = EDIT_SUBJECTS
) -> Iterator[OrdinaryQuestion]:
    """Draw ordinary questions, all forms in turn, and within a form its sources in turn: scene, document, no picture.

    The same arguments draw the same questions. Leaving a form out draws the other forms' questions as they were, except that
    chats hold none of that form.

    Args:
        seed: seed of pictures and questions.
        count: number of questions.
        without: forms to leave out, of `FORMS`.
        subjects: subjects of the documents, as names of shipped specs or paths of YAML files.

    Raises:
        ValueError: see `check_forms`; or the forms that a chat could hold are left out.
        DataFormatError: a subject spec is invalid.
    """
    check_forms(without)
    forms = [form for form in FORMS if form not in without]
    specs = [load_subject_spec(subject) for subject in subjects]
    used: set[str] = set()
    for index in range(count):
        number, place = divmod(index, len(forms))
        drawer = _Drawer(seed, forms[place], number, specs, without)
        found = list(islice(drawer.tries(), 1))
        if found and found[0].question in used:
            found = list(islice(drawer.tries(), _REDRAWS))
        if not found:
            raise ValueError(f"no question of the form '{drawer.form}' is left; leave out fewer forms")
        question = next((question for question in found if question.question not in used), found[0])
        used.add(question.question)
        yield question


class _Drawer:
    """Draws the question with a number among those of a form, in several tries."""

    def __init__(
        self, seed: int, form: Form, number: int, specs: Sequence[SubjectSpec], without: Collection[str]
    ) -> None:
        self.seed, self.form, self.number, self.specs, self.without = seed, form, number, specs, without

    def tries(self) -> Iterator[OrdinaryQuestion]:
        """Yield questions that fit the form, at most one per try."""
        sources = _SOURCES[self.form]
        for attempt in range(_TRIES * len(sources)):
            # another source where one has no question of these forms
            ask = sources[(self.number + attempt // _TRIES) % len(sources)]
            rng = random.Random(f"ordinary/{self.seed}/{self.form}/{self.number}/{attempt}")
            image, turns = ask(self, rng, picture_seed(self.seed, f"ordinary/{self.form}/{attempt}", self.number))
            turns = [
                turn for turn in turns
                if not turn.question.startswith(_OPENINGS_OF_TESTS) and not turn.question.endswith(_CLOSINGS_OF_TESTS)
            ]  # fmt: skip
            if self.form == "chat":
                turns = [turn for turn in turns if _form_of(turn) not in (None, *self.without)]
                if len(turns) > 1:
                    first, second = rng.sample(turns, 2)
                    earlier = (("user", first.question), ("assistant", first.answer))
                    yield OrdinaryQuestion(self.form, second.question, image, earlier)
            elif turns := [turn for turn in turns if _form_of(turn) == self.form]:
                kind = rng.choice(sorted({turn.kind for turn in turns}))
                yield OrdinaryQuestion(self.form, next(turn.question for turn in turns if turn.kind == kind), image)

    def scene(self, rng: random.Random, picture: int) -> tuple[Image.Image | None, list[Turn]]:
        """Ask about a scene without documents; where writing is to be read, with writing."""
        places = [place for place in _places() if place.sign_specs or self.form != "reading"]
        place = rng.choice(places)
        signs = [rng.choice(place.sign_specs)] if self.form == "reading" else None
        scene = draw_scene(place, picture, signs=signs, documents=())
        return scene.image, scene_turns(scene, rng, _TURNS)

    def document(self, rng: random.Random, picture: int) -> tuple[Image.Image | None, list[Turn]]:
        """Ask for the attributes of a document that an edit's benign questions ask for, and what it is."""
        spec = self.specs[self.number // len(_SOURCES[self.form]) % len(self.specs)]
        benign = spec.model_copy(
            update={"fields": {name: spec.fields[name] for name in spec.phrases(sensitive=False, unseen=False)}}
        )
        drawn = render(spec, picture)
        turns = document_turns(benign, drawn.values, TRAINING_TEMPLATES, rng, _TURNS)
        return drawn.image, [turn for turn in turns if turn.kind not in ("form", "caption")]

    def no_picture(self, rng: random.Random, picture: int) -> tuple[Image.Image | None, list[Turn]]:
        """Ask for facts, openly, as yes/no and as choice; every other `text` is a request instead."""
        if self.form == "text" and self.number % 2:
            return None, [Turn("fact", rng.choice(open_requests()), "")]
        turns = []
        for fact in rng.sample(reworded_facts(), 2):
            truth = rng.random() < 0.5
            stated = fact.answer if truth else rng.choice(fact.others)
            turns.append(Turn("fact", fact.question, f"{fact.answer}."))
            turns.append(yes_no_turn("yes_no_fact", fact.statement.replace("{answer}", stated), truth, "", rng))
            turns.append(choice_turn("choice_fact", fact.question, fact.answer, fact.others, rng))
        return None, turns

    def shape(self, rng: random.Random, picture: int) -> tuple[Image.Image | None, list[Turn]]:
        """Ask for a public attribute in the edit's words, about a picture of a shape."""
        question = public_questions(self.number + 1, random.Random(f"public/{self.seed}"))[self.number]
        return ordinary_picture(picture)[0], [Turn("public", question, "")]


_SOURCES: dict[Form, tuple[Callable[[_Drawer, random.Random, int], tuple[Image.Image | None, list[Turn]]], ...]] = {
    "yes_no": (_Drawer.scene, _Drawer.document, _Drawer.no_picture),
    "choice": (_Drawer.scene, _Drawer.document, _Drawer.no_picture),
    "count": (_Drawer.scene,),
    "attribute": (_Drawer.scene, _Drawer.document),
    "caption": (_Drawer.scene, _Drawer.document),
    "reading": (_Drawer.scene,),
    "public": (_Drawer.shape,),
    "chat": (_Drawer.scene, _Drawer.document, _Drawer.no_picture),
    "text": (_Drawer.no_picture,),
}


def _form_of(turn: Turn) -> Form | None:
    return "choice" if turn.kind.startswith("choice_") else _FORM_OF_KIND.get(turn.kind)


@cache
def _places() -> tuple[SceneSpec, ...]:
    return tuple(load_scene_spec(name) for name in shipped_places())
