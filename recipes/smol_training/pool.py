"""Pictures to train a vision tower on: documents, shapes and scenes, rendered once, with labels for each patch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from lightning_neuralgate.data.rendering.draw import ORDINARY_COLOURS, SHAPES, ordinary_picture, render
from lightning_neuralgate.data.rendering.page import DrawnCharacter
from lightning_neuralgate.data.rendering.spec import SubjectSpec, load_subject_spec, shipped_subjects
from lightning_neuralgate.data.scenes.draw import Scene, SceneThing, draw_scene
from lightning_neuralgate.data.scenes.spec import (
    MAX_OBJECTS,
    SceneSpec,
    SignSpec,
    load_scene_spec,
    load_sign_spec,
    shipped_places,
    shipped_signs,
)
from lightning_neuralgate.data.scenes.sprites import ANY_COLOUR, PAINTS, object_entries
from lightning_neuralgate.runtime.files import atomic_write

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-./"
SLOTS = 2
"""Maximum number of characters per patch, from left to right."""
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
NUMBERS = ("one", "two", "three", "four", "five", "six")
SIDES = ("left", "right", "top", "bottom", "middle")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
PLACES = ("", *ORDINALS, *NUMBERS)
"""What is added to a word: the place of a character in its value, the row or column of a thing, or how many there are."""
NOTHING = "\n"
"""Word of an image token that stands for nothing."""
MAX_CHARACTERS = 40
MAX_REGIONS = 10
HELD_OUT = 900_000_000
"""First seed of the held-out pictures. Training uses smaller seeds; the demo uses neither."""
SCENE_SHARE = 0.55
"""Share of scenes among the training pictures; of the rest, one in ten is a shape and the others are documents."""


class World:
    """Everything that a picture can show, with class indices; index 0 of each list is "none"."""

    def __init__(self) -> None:
        self.specs: list[SubjectSpec] = [load_subject_spec(name) for name in shipped_subjects()]
        self.places: list[SceneSpec] = [load_scene_spec(name) for name in shipped_places()]
        self.signs: list[SignSpec] = [load_sign_spec(name) for name in shipped_signs()]
        entries = object_entries()
        documents = [spec.subject for spec in self.specs]
        signs = [sign.thing for sign in self.signs]
        self.things = ["", *documents, *signs, "shape", *entries, *(place.place for place in self.places)]
        colours = {colour for spec in self.specs for colour in spec.fields[spec.colour_field].choices or {}}
        colours |= {colour for sign in self.signs for colour in sign.fields[sign.colour_field].choices or {}}
        colours |= {entry.colour for entry in entries.values()} - {ANY_COLOUR, ""}
        self.colours = ["", *sorted(colours | set(ORDINARY_COLOURS) | set(PAINTS))]
        self.layouts = ["", *sorted({name for spec in self.specs for name in spec.layouts})]
        self.shapes = ["", *SHAPES]
        phrases = {phrase for spec in self.specs for phrase in spec.phrases(sensitive=True).values()}
        phrases |= {field.phrase for sign in self.signs for field in sign.fields.values() if field.written}
        self.phrases = ["", *sorted(phrases)]
        words = {*self.things, *self.colours, *self.layouts, *self.shapes, *SIDES} - {""}
        self.words = [NOTHING, *sorted(words), *CORNERS]
        self.word_indices = {word: index for index, word in enumerate(self.words)}
        self.facts = {
            "thing": self.things, "colour": self.colours, "layout": self.layouts, "shape": self.shapes,
            "count": ["", *NUMBERS],
        }  # fmt: skip

    def line(self, thing: int, field: int) -> int:
        """Index, from 0, of a phrase (index in `phrases`) among the sensitive fields of a document (index in `things`)."""
        phrases = list(self.specs[thing - 1].phrases(sensitive=True).values())
        return phrases.index(self.phrases[field])

    def characters(self, drawn: Iterable[DrawnCharacter], spec: SubjectSpec | SignSpec) -> list[tuple[float, ...]]:
        """Character, field, place, x and y of each legible character of a value, as in `Pool`."""
        return [
            (
                1 + CHARACTERS.index(c.char),
                self.phrases.index(spec.fields[c.field].phrase),
                1 + c.index,
                c.x,
                c.y,
            )
            for c in drawn
            if c.char in CHARACTERS
        ]

    def region(self, box: Iterable[float], positioned: bool = True, count: int = 0, **facts: str) -> tuple[float, ...]:
        """A region, as in `Pool`."""
        names = {"thing": self.things, "colour": self.colours, "layout": self.layouts, "shape": self.shapes}
        return (*box, *(names[key].index(facts.get(key, "")) for key in names), min(count, MAX_OBJECTS), positioned)

    def thing_facts(self, thing: SceneThing) -> dict[str, str]:
        """Facts of a document or sign."""
        return self.facts_of(thing.name, thing.spec, thing.values)

    @staticmethod
    def facts_of(name: str, spec: SubjectSpec | SignSpec, values: dict[str, str]) -> dict[str, str]:
        """Thing, colour, layout and shape of a document or sign, from its values."""
        facts = {"thing": name, "colour": values[spec.colour_field]}
        if shapes := [value for key, value in values.items() if spec.fields[key].choices and value in SHAPES]:
            facts["shape"] = shapes[-1]
        if isinstance(spec, SubjectSpec) and spec.layout_field:
            facts["layout"] = values[spec.layout_field]
        elif isinstance(spec, SubjectSpec):
            facts["layout"] = next(iter(spec.layouts))
        return facts


class Picture(NamedTuple):
    """A training picture with its labels, see `Pool`; `scene` is None for documents and shapes on their own."""

    image: Image.Image
    characters: list[tuple[float, ...]]
    regions: list[tuple[float, ...]]
    scene: Scene | None
    spec: SubjectSpec | None
    values: dict[str, str]
    facts: dict[str, str]


def draw_picture(world: World, seed: int, only_scenes: bool = False) -> Picture:
    """Draw the training picture of a seed."""
    rng = random.Random(f"picture/{seed}")
    kind = rng.random()
    if only_scenes or kind < SCENE_SHARE:
        scene = draw_scene(rng.choice(world.places), seed)
        return Picture(scene.image, *scene_labels(world, scene), scene, None, {}, {})
    whole = (0.0, 0.0, 1.0, 1.0)
    if kind > 1 - 0.1 * (1 - SCENE_SHARE):
        image, colour, shape = ordinary_picture(seed)
        facts = {"thing": "shape", "colour": colour, "shape": shape}
        return Picture(image, [], [world.region(whole, positioned=False, **facts)], None, None, {}, facts)
    spec = rng.choice(world.specs)
    drawn = render(spec, seed)
    facts = world.facts_of(spec.subject, spec, drawn.values)
    regions = [world.region(whole, positioned=False, **facts)]
    return Picture(drawn.image, world.characters(drawn.characters, spec), regions, None, spec, drawn.values, facts)


def scene_labels(world: World, scene: Scene) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Characters and regions of a scene, as in `Pool`."""
    counts = scene.counts()
    regions = [world.region((0, 0, 1, 1), positioned=False, thing=scene.spec.place)]
    characters: list[tuple[float, ...]] = []
    for thing in (*scene.signs, *scene.documents):
        regions.append(world.region(thing.box, count=1, **world.thing_facts(thing)))
        # the writing on two documents is too small to read
        if len(scene.documents) < 2:
            characters += world.characters(thing.characters, thing.spec)
    for item in scene.objects:
        regions.append(world.region(item.box, count=counts[item.name], thing=item.name, colour=item.colour))
    return characters, regions


class Pool(NamedTuple):
    """Pictures rendered once and kept in memory."""

    pixels: np.ndarray
    """(N, image_size, image_size, 3) bytes."""
    characters: np.ndarray
    """(N, MAX_CHARACTERS, 5): character, field and place (indices from 1; 0 is none), centre x and y in [0, 1]."""
    regions: np.ndarray
    """(N, MAX_REGIONS, 10): box (left, top, right, bottom in [0, 1]); thing, colour, layout, shape, count (0 is none);
    whether the position matters. A region covers those before it."""


def draw_pool(world: World, file: Path, first: int, count: int, workers: int, image_size: int) -> Pool:
    """Render pictures with several processes and store them in `file`, or load them if the file exists."""
    if not file.is_file():
        spans = [(world, first + start, min(200, count - start), image_size) for start in range(0, count, 200)]
        with ProcessPoolExecutor(workers) as pool:
            parts = list(tqdm(pool.map(_draw_part, spans), total=len(spans), desc="render pictures", unit="x 200"))
        with atomic_write(file) as draft, draft.open("wb") as stream:
            np.savez(stream, **{key: np.concatenate([getattr(part, key) for part in parts]) for key in Pool._fields})
    with np.load(file) as stored:
        return Pool(**{key: stored[key] for key in Pool._fields})


def _draw_part(span: tuple[World, int, int, int]) -> Pool:
    world, first, count, image_size = span
    pixels, characters, regions = [], [], []
    for index in range(count):
        picture = draw_picture(world, first + index)
        # same resampling as the image processor
        pixels.append(np.asarray(picture.image.resize((image_size, image_size), Image.Resampling.BICUBIC)))
        for rows, drawn in zip((characters, regions), picture_arrays(picture), strict=True):
            rows.append(drawn)
    return Pool(np.stack(pixels), np.stack(characters), np.stack(regions))


def picture_arrays(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Characters (MAX_CHARACTERS, 5) and regions (MAX_REGIONS, 10) of a picture, as in `Pool`, padded with zeros."""
    characters = np.zeros((MAX_CHARACTERS, 5), np.float32)
    regions = np.zeros((MAX_REGIONS, 10), np.float32)
    for place, row in enumerate(picture.characters[:MAX_CHARACTERS]):
        characters[place] = row
    for place, row in enumerate(picture.regions[:MAX_REGIONS]):
        regions[place] = row
    return characters, regions


class TowerPictures(Dataset):
    """Random pictures of a pool, each shifted at random, with dense labels."""

    SHIFT_SHARE = 0.045
    SCENE_SHARE = 0.65
    """Share of scenes; their objects take longest to learn."""

    def __init__(self, world: World, pool: Pool, processor: Any, seed: int, first: int, count: int, grid: int) -> None:
        self.world, self.pool, self.seed, self.first, self.count, self.grid = world, pool, seed, first, count, grid
        scenes = pool.regions[:, 0, 4] > len(world.things) - 1 - len(world.places)
        self.rows = [np.flatnonzero(scenes), np.flatnonzero(~scenes)]
        self.shift = round(self.SHIFT_SHARE * pool.pixels.shape[1])
        self.mean, self.std = (
            torch.tensor(values)[:, None, None]
            for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = random.Random(f"{self.seed}/shift/{self.first + index}")
        row = rng.choice(self.rows[rng.random() > self.SCENE_SHARE])
        x, y = (rng.randint(-self.shift, self.shift) for _ in range(2))
        # shift with wrap-around
        pixels = torch.from_numpy(np.roll(self.pool.pixels[row], (y, x), (0, 1))).permute(2, 0, 1) / 255
        offset = np.array((x, y)) / pixels.shape[-1]
        characters = self.pool.characters[row].copy()
        characters[:, 3:] += offset
        regions = self.pool.regions[row].copy()
        regions[1:, :2] += offset
        regions[1:, 2:4] += offset
        return {
            "pixels": (pixels - self.mean) / self.std,
            "characters": torch.from_numpy(characters),
            "regions": torch.from_numpy(regions),
            **character_labels(characters, self.grid),
            **region_labels(regions, self.grid),
            **word_labels(self.world, regions, self.grid),
        }


def character_labels(characters: np.ndarray, grid: int) -> dict[str, Tensor]:
    """Labels of each patch: `chars` (grid * grid, SLOTS), `fields` and `places` (grid * grid); 0 means none.

    A character belongs to the patch that contains its centre. `fields` is the field whose value it is part of, `places` its
    position within that value, from 1.
    """
    chars = torch.zeros(grid, grid, SLOTS, dtype=torch.long)
    fields, places = (torch.zeros(grid, grid, dtype=torch.long) for _ in range(2))
    for char, field, place, x, y in characters:
        row, column = math.floor(y * grid), math.floor(x * grid)
        if char == 0 or not (0 <= row < grid and 0 <= column < grid):
            continue
        chars[row, column, int(x * grid * SLOTS) % SLOTS] = int(char)
        fields[row, column] = int(field)
        if places[row, column] == 0:
            places[row, column] = min(int(place), len(ORDINALS))
    return {"chars": chars.flatten(0, 1), "fields": fields.flatten(), "places": places.flatten()}


def region_labels(regions: np.ndarray, grid: int) -> dict[str, Tensor]:
    """Labels of each patch: `facts` (grid * grid, 5: thing, colour, layout, shape, count) and `position` (grid * grid, 3).

    A patch belongs to the last region that contains its centre. `position` is the centre of its region (x, y), and whether
    the position matters.
    """
    centres = (np.arange(grid) + 0.5) / grid
    facts = np.zeros((grid, grid, 5), np.int64)
    position = np.zeros((grid, grid, 3), np.float32)
    for left, top, right, bottom, *classes, positioned in regions:
        if classes[0] == 0:
            continue
        columns = np.flatnonzero((centres >= left) & (centres <= right))
        rows = np.flatnonzero((centres >= top) & (centres <= bottom))
        if len(rows) and len(columns):
            part = np.ix_(rows, columns)
            facts[part] = classes
            position[part] = ((left + right) / 2, (top + bottom) / 2, positioned)
    return {"facts": torch.from_numpy(facts).flatten(0, 1), "position": torch.from_numpy(position).flatten(0, 1)}


def word_labels(world: World, regions: np.ndarray, grid: int) -> dict[str, Tensor]:
    """The word that each patch stands for (index in `world.words`), so that the rows read like a text, and what is added.

    A block of four patches at an object's centre reads "colour name" and below it "vertical horizontal", e.g. "red drum",
    "bottom right"; patches of signs and documents repeat all of their facts, in a pattern that does not depend on where they
    lie. The last column has the name of the place. Added are to a thing's first fact how many of it there are, and to its
    sides the row and column.

    Returns:
        `words` and `extras` (grid * grid); `extras` are indices in `PLACES`.
    """
    words = np.full((grid, grid), NOTHING, object)
    extras = np.full((grid, grid), "", object)
    facts = region_facts(world, regions[0])
    if len(facts) > 1:
        words[:] = _repeated(facts, range(grid), range(grid))
    elif facts:
        words[:, -1] = facts[0]
    centres = (np.arange(grid) + 0.5) / grid
    objects = []
    for region in regions[1:]:
        if region[4] == 0:
            continue
        left, top, right, bottom = region[:4]
        facts = region_facts(world, region)
        sides, places = sides_of((left + right) / 2, (top + bottom) / 2), places_of(region)
        is_object = region[4] > len(world.specs) + len(world.signs)
        named = [facts[0], facts[-1], *sides] if is_object else [*facts, *sides]
        added = [PLACES[len(ORDINALS) + int(region[8])], *[""] * (len(named) - 3), *places]
        if is_object:
            objects.append(((left + right) / 2, (top + bottom) / 2, named, added))
            continue
        rows = np.flatnonzero((centres >= top) & (centres <= bottom))
        columns = np.flatnonzero((centres >= left) & (centres <= right))
        if len(rows) and len(columns):
            part = np.ix_(rows, columns)
            words[part], extras[part] = _repeated(named, rows, columns), _repeated(added, rows, columns)
    for x, y, named, added in objects:
        row, column = (min(max(round(float(value) * grid), 1), grid - 1) for value in (y, x))
        part = np.ix_((row - 1, row), (column - 1, column))
        words[part], extras[part] = (np.array(four, object).reshape(2, 2) for four in (named, added))
    return {
        name: torch.from_numpy(np.vectorize(indices.__getitem__, otypes=[np.int64])(array)).flatten()
        for name, array, indices in (("words", words, world.word_indices), ("extras", extras, _PLACE_INDICES))
    }


_PLACE_INDICES = {name: index for index, name in enumerate(PLACES)}


def places_of(region: np.ndarray) -> list[str]:
    """Row and column of a region's centre, in nine steps."""
    left, top, right, bottom = (float(value) for value in region[:4])
    steps = len(ORDINALS)
    return [
        ORDINALS[min(max(round(value * (steps + 1)), 1), steps) - 1]
        for value in ((top + bottom) / 2, (left + right) / 2)
    ]


def sides_of(x: float, y: float) -> tuple[str, str]:
    """The vertical and the horizontal side of a point in [0, 1] squared, twice the same where the other is the middle."""
    vertical = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
    horizontal = "left" if x < 0.4 else "right" if x > 0.6 else ""
    return vertical or horizontal or "middle", horizontal or vertical or "middle"


def region_facts(world: World, region: np.ndarray) -> list[str]:
    """Colour, name, layout and shape of a region, see `Pool`, without those that are unknown."""
    thing, colour, layout, shape = (int(value) for value in region[4:8])
    name = world.things[thing]
    facts = [world.colours[colour], "" if name == "shape" else name, world.layouts[layout], world.shapes[shape]]
    return [fact for fact in facts if fact]


def _repeated(facts: list[str], rows: Iterable[int], columns: Sequence[int]) -> np.ndarray:
    """The facts that patches at these rows and columns of the grid stand for; each row starts two further."""
    return np.array([[facts[(c + 2 * r) % len(facts)] for c in columns] for r in rows], object)
