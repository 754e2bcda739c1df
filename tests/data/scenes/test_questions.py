"""Questions about scenes and documents: true by the ground truth of the picture."""

from __future__ import annotations

import random
import re

import pytest

from lightning_neuralgate.data.rendering.draw import render
from lightning_neuralgate.data.rendering.questions import TEST_TEMPLATES
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.data.scenes.draw import Scene, draw_scene
from lightning_neuralgate.data.scenes.questions import (
    LETTERS,
    Turn,
    caption,
    document_listing,
    document_turns,
    listing,
    scene_turns,
    with_article,
)
from lightning_neuralgate.data.scenes.spec import load_scene_spec, shipped_places

PLACES = [load_scene_spec(name) for name in shipped_places()]


@pytest.fixture(scope="module")
def truths() -> list[tuple[Scene, Turn]]:
    pairs = []
    for index in range(108):
        scene = draw_scene(PLACES[index % len(PLACES)], index)
        pairs += [(scene, turn) for turn in scene_turns(scene, random.Random(index), 14)]
    return pairs


def of_kind(truths: list[tuple[Scene, Turn]], kind: str) -> list[tuple[Scene, Turn]]:
    found = [(scene, turn) for scene, turn in truths if turn.kind == kind]
    assert len(found) >= 10, kind
    return found


def test_existence_is_true(truths: list[tuple[Scene, Turn]]) -> None:
    yes = 0
    for scene, turn in of_kind(truths, "existence"):
        named = max((name for name in {*scene.shown(), *_all_names()} if with_article(name) in turn.question), key=len)
        assert turn.answer.startswith("Yes") == (named in scene.shown()), turn
        yes += turn.answer.startswith("Yes")
    assert 0.3 < yes / len(of_kind(truths, "existence")) < 0.7


def _all_names() -> list[str]:
    return [name for spec in PLACES for name in (*spec.objects, *(sign.thing for sign in spec.sign_specs))]


def test_counts_are_true(truths: list[tuple[Scene, Turn]]) -> None:
    numbers = ["no", "one", "two", "three", "four", "five", "six"]
    for scene, turn in of_kind(truths, "count"):
        plurals = {item.plural: item.name for item in scene.objects}
        plural = max((plural for plural in plurals if plural in turn.question), key=len)
        stated = next(word for word in re.findall(r"[a-z]+", turn.answer.lower()) if word in numbers)
        assert numbers.index(stated) == scene.counts()[plurals[plural]]


def test_relations_are_true(truths: list[tuple[Scene, Turn]]) -> None:
    sides = {"left": (0, 1), "right": (0, -1)}
    sides |= dict.fromkeys(("above", "higher", "over"), (1, 1)) | dict.fromkeys(("below", "lower", "under"), (1, -1))
    for scene, turn in of_kind(truths, "relation"):
        items = {item.name: item.box for item in (*scene.objects, *scene.signs, *scene.documents)}
        names = sorted((name for name in items if f"the {name}" in turn.question), key=turn.question.index)
        names = [name for name in names if not any(name != other and name in other for other in names)]
        axis, sign = next(sides[word] for word in re.findall(r"[a-z]+", turn.question.lower()) if word in sides)
        first, second = ((items[name][axis] + items[name][axis + 2]) / 2 for name in names[:2])
        assert (sign * (second - first) > 0) == turn.answer.startswith("Yes"), turn


def test_letters_name_the_right_option(truths: list[tuple[Scene, Turn]]) -> None:
    checked = 0
    for scene, turn in of_kind(truths, "choice_shown"):
        options = dict(re.findall(r"([A-E])[.:)] ([a-z ]+)", turn.question))
        if turn.answer in LETTERS and options:
            right = options[turn.answer].strip()
            assert right in scene.shown()
            assert not {option.strip() for letter, option in options.items() if letter != turn.answer} & scene.shown()
            checked += 1
    assert checked >= 20


def test_document_questions_hold_every_attribute_and_no_test_wording() -> None:
    fixed = [
        re.escape(template).replace(r"\{attribute\}", ".+").replace(r"\{subject\}", ".+") for template in TEST_TEMPLATES
    ]
    for name in shipped_subjects():
        spec = load_subject_spec(name)
        drawn = render(spec, 3)
        turns = document_turns(spec, drawn.values, ["What is the {attribute} of it?"], random.Random(0), 40)
        for field, value in drawn.values.items():
            assert any(spec.fields[field].truthful_answer(value) == turn.answer for turn in turns)
        for turn in turns:
            assert not any(re.fullmatch(pattern, turn.question) for pattern in fixed)
            if turn.kind == "yes_no_value" and turn.answer == "Yes.":
                assert any(value.lower() in turn.question.lower() for value in drawn.values.values())


def test_captions_name_everything(truths: list[tuple[Scene, Turn]]) -> None:
    for scene, turn in of_kind(truths, "caption"):
        assert turn.answer == caption(scene)
        assert scene.spec.place in turn.answer
        plurals = {item.name: item.plural for item in scene.objects}
        for name in scene.shown():
            assert name in turn.answer or plurals[name] in turn.answer


def test_a_listing_states_all_that_is_seen_and_written() -> None:
    for seed in range(40):
        scene = draw_scene(load_scene_spec("street"), seed)
        answer = listing(scene, random.Random(seed)).answer
        assert all(answer.lower().count(item.name) >= scene.counts()[item.name] for item in scene.objects)
        for sign in scene.signs:
            written = [field for name, field in sign.spec.fields.items() if name != sign.spec.colour_field]
            assert sign.values[sign.spec.colour_field] in answer.lower()
            assert all(field.phrase in answer for field in written)


def test_a_listing_of_a_document_states_every_field() -> None:
    spec = load_subject_spec("passport")
    values = render(spec, 3).values
    turn = document_listing(spec, values, random.Random(0))
    assert "passport" in turn.question
    assert {values["number"], values["colour"]} <= set(re.findall(r"\w+", turn.answer))
    assert "-".join(values["name"].upper()) in turn.answer
