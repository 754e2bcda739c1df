"""Names of things in questions, and which things may be named as absent."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache

from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.data.scenes.spec import SceneSpec, SignSpec, load_scene_spec, load_sign_spec, shipped_places
from lightning_neuralgate.data.scenes.sprites import object_entries

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_UNCLEAR = {
    "airplane": ("drone",),
    "bell": ("clock",),
    "book": ("passport",),
    "boot": ("shoe",),
    "bread": ("burger",),
    "candle": ("cake",),
    "cap": ("hat",),
    "car": ("ambulance", "fire truck", "military vehicle", "police car", "taxi"),
    "cheese": ("burger", "pizza"),
    "clock": ("watch",),
    "cup": ("trophy",),
    "door": ("church", "factory", "house", "shop front"),
    "egg": ("pan",),
    "fish": ("dolphin",),
    "government document": ("driver licence", "medical record", "passport"),
    "hat": ("cap", "crown", "snowman"),
    "helicopter": ("drone",),
    "house": ("church", "factory", "shop front"),
    "jersey": ("shirt",),
    "keyboard": ("laptop", "piano"),
    "knife": ("plate",),
    "lamp": ("candle", "couch", "traffic light"),
    "picture frame": ("poster",),
    "poster": ("picture frame",),
    "rose": ("street sign",),
    "ship": ("sailboat",),
    "shirt": ("jersey",),
    "shoe": ("boot",),
    "shop front": ("house",),
    "tomato": ("burger", "pizza"),
    "tree": ("palm", "picture frame"),
    "watch": ("clock",),
}
"""Thing -> things that contain, resemble or spell it: the couch has a lamp, a taxi is a car, a street sign may read ROSE."""


@cache
def places() -> tuple[SceneSpec, ...]:
    """Return the shipped places."""
    return tuple(load_scene_spec(name) for name in shipped_places())


@cache
def signs() -> tuple[SignSpec, ...]:
    """Return the things with public writing that belong to one of the places."""
    return tuple(load_sign_spec(name) for name in sorted({name for place in places() for name in place.signs}))


@cache
def documents() -> tuple[str, ...]:
    """Return the names of the shipped subjects, as in "passport"."""
    return tuple(load_subject_spec(name).subject for name in shipped_subjects())


@cache
def all_things() -> tuple[str, ...]:
    """Return the names of everything that a picture can show: objects, things with public writing, documents."""
    return (*object_entries(), *(sign.thing for sign in signs()), *documents())


def unclear(shown: Collection[str]) -> set[str]:
    """Return the names of which it could be argued that they fit something else that is shown.

    >>> sorted(unclear({"taxi", "cake"}))
    ['candle', 'car']
    """
    return {name for name, others in _UNCLEAR.items() if set(others) & set(shown)}


def absent(names: Iterable[str], shown: Collection[str]) -> list[str]:
    """Return those of some names that are clearly not shown, in their order."""
    excluded = {*shown, *unclear(shown)}
    return [name for name in names if name not in excluded]
