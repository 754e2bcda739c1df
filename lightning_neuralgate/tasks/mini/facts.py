"""Pictures drawn around one fact: a number of objects, a colour, public writing, a category."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image

from lightning_neuralgate.data.rendering.draw import draw_value
from lightning_neuralgate.data.scenes.draw import Scene, held_out_value
from lightning_neuralgate.data.scenes.spec import MAX_OBJECTS, SignField, SignSpec
from lightning_neuralgate.data.scenes.sprites import ANY_COLOUR, PAINTS
from lightning_neuralgate.tasks.mini.pictures import Pictures
from lightning_neuralgate.tasks.mini.words import NUMBERS, places, signs, unclear

KINDS = ("animal", "building", "clothing", "fruit", "furniture", "instrument", "vehicle")
"""Categories of which no two fit one object."""
MOST_COUNTED = 5
_ARGUABLE = ("bell", "crown", "glasses")
"""Objects whose category could be argued about."""
_UNCOUNTED = ("cherry",)
"""Objects of which one sprite shows several."""
_ALIKE = ({"brown", "orange"}, {"black", "grey"}, {"grey", "white"}, {"orange", "yellow"}, {"pink", "purple"})
"""Colours that light can make hard to tell apart."""
_NEAR = 3
"""Largest distance of a wrong number from the right one."""
_VALUES = 4
"""Number of values of public writing to choose from."""


class Fact(NamedTuple):
    """A picture with a fact about it.

    Attributes:
        image: the picture.
        thing: name of what the fact is about, such as "dog" or "bus".
        truth: such as "red", "three", "347", "animal".
        others: what the truth could have been instead, and is not.
        attribute: name of the attribute, such as "phone number"; for public writing only.
    """

    image: Image.Image
    thing: str
    truth: str
    others: list[str]
    attribute: str = ""


def draw_things(pictures: Pictures, least: int) -> Scene:
    """Draw a scene with at least this many different things."""
    while True:
        scene = pictures.scene()
        if len(scene.shown()) >= least:
            return scene


def draw_objects(pictures: Pictures, number: int) -> Scene:
    """Draw objects of one place, and nothing else, all different and none like another."""
    while True:
        place = pictures.place()
        names = pictures.rng.sample(list(place.objects), number)
        if not unclear(names) & set(names):
            scene = pictures.scene(place, names, (), ())
            if len(scene.objects) == number:
                return scene


def draw_count(pictures: Pictures, number: int) -> Fact:
    """Draw a number of equal objects, from 1 to `MOST_COUNTED`, and up to two others."""
    near = [word for other, word in enumerate(NUMBERS) if other and 0 < abs(other - number) <= _NEAR]
    while True:
        place = pictures.place()
        name, *company = pictures.rng.sample(list(place.objects), 3)
        names = ([name] * number + company)[: pictures.rng.randint(number, MAX_OBJECTS)]
        if name not in _UNCOUNTED and name not in unclear(names):
            scene = pictures.scene(place, names, (), ())
            if scene.counts()[name] == number:
                return Fact(scene.image, name, NUMBERS[number], near)


def draw_kind(pictures: Pictures) -> Fact:
    """Draw one object whose category is one of `KINDS`."""
    while True:
        place = pictures.place()
        typical = [name for name in place.objects if place.entry(name).category in KINDS and name not in _ARGUABLE]
        if typical:
            name = pictures.rng.choice(typical)
            kind = place.entry(name).category
            scene = pictures.scene(place, [name], (), ())
            return Fact(scene.image, name, kind, [other for other in KINDS if other != kind])


def draw_colour(pictures: Pictures, number: int) -> Fact:
    """Draw a thing that comes in several colours: one in three times an object, a document, a thing with public writing."""
    draw = (_painted_object, _coloured_document, _coloured_sign)[number % 3]
    while True:
        if fact := draw(pictures):
            return fact


def _painted_object(pictures: Pictures) -> Fact | None:
    place = pictures.place()
    painted = [name for name in place.objects if place.entry(name).colour == ANY_COLOUR]
    if not painted:
        return None
    name = pictures.rng.choice(painted)
    company = pictures.rng.sample([other for other in place.objects if other != name], 2)
    scene = pictures.scene(place, [name, *company], (), ())
    return None if name in unclear(scene.shown()) else _coloured(scene.image, name, scene.objects[0].colour, PAINTS)


def _coloured_document(pictures: Pictures) -> Fact:
    document = pictures.document()
    field = document.spec.colour_field
    choices = document.spec.fields[field].choices or ()
    return _coloured(document.image, document.spec.subject, document.values[field], choices)


def _coloured_sign(pictures: Pictures) -> Fact | None:
    place = pictures.place()
    if not place.sign_specs:
        return None
    spec = pictures.rng.choice(place.sign_specs)
    scene = pictures.scene(place, signs=[spec], documents=())
    choices = spec.fields[spec.colour_field].choices or ()
    colour = scene.signs[0].values[spec.colour_field]
    return None if spec.thing in unclear(scene.shown()) else _coloured(scene.image, spec.thing, colour, choices)


def _coloured(image: Image.Image, thing: str, colour: str, colours: Iterable[str]) -> Fact:
    return Fact(image, thing, colour, [o for o in colours if o != colour and {o, colour} not in _ALIKE])


def draw_writing(pictures: Pictures, number: int) -> Fact:
    """Draw a thing with public writing. The things with at least two values that are kept for tests take turns."""
    readable = [spec for spec in signs() if len(_test_values(spec, pictures, 2)) == 2]
    spec = readable[number % len(readable)]
    place = pictures.rng.choice([place for place in places() if spec in place.sign_specs])
    scene = pictures.scene(place, signs=[spec], documents=())
    name, field = _written_field(spec)
    truth = scene.signs[0].values[name]
    others = [value for value in _test_values(spec, pictures, _VALUES) if value != truth]
    return Fact(scene.image, spec.thing, truth, others, field.phrase)


def _written_field(spec: SignSpec) -> tuple[str, SignField]:
    """Return the name and the description of the attribute that is written on a thing."""
    return next((name, field) for name, field in spec.fields.items() if field.written)


def _test_values(spec: SignSpec, pictures: Pictures, most: int) -> list[str]:
    """Return different values of the writing that are kept for tests, fewer than `most` if 1000 draws yield no more."""
    values: dict[str, None] = {}
    for _ in range(1000):
        value = draw_value(_written_field(spec)[1], spec.thing, pictures.rng)
        if held_out_value(value):
            values[value] = None
        if len(values) == most:
            break
    return list(values)
