"""Questions and truthful answers about scenes and documents, in many forms and wordings.

They train the embedded models, and are a source of retention questions. The wordings of the benchmarks are not among them.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from lightning_neuralgate.data.rendering.spec import FieldSpec, SubjectSpec
from lightning_neuralgate.data.scenes import wordings
from lightning_neuralgate.data.scenes.draw import Scene, SceneObject, SceneThing
from lightning_neuralgate.data.scenes.sprites import PAINTS, object_entries
from lightning_neuralgate.data.scenes.words import article, noun

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
MARGIN = 0.15
"""Least distance of two centres, as a share of the edge, for one to be left of the other or above it."""
SIZE_RATIO = 1.4
"""Least ratio of two areas for one to be the larger."""
LETTERS = "ABCDE"
_PIECES = {"furniture": "piece of furniture", "clothing": "piece of clothing", "food": "piece of food"}

_LONG_NUMBERS = (*NUMBERS, "seven", "eight", "nine", "ten", "eleven", "twelve")


class Turn(NamedTuple):
    """A question and its truthful answer, and what kind of question it is."""

    kind: str
    question: str
    answer: str


def with_article(name: str) -> str:
    """Return the name of one thing with an article.

    >>> with_article("apple"), with_article("bus"), with_article("unit number"), with_article("glasses")
    ('an apple', 'a bus', 'a unit number', 'a pair of glasses')
    """
    return article(noun(name))


def scene_turns(scene: Scene, rng: random.Random, count: int, kinds: Collection[str] | None = None) -> list[Turn]:
    """Draw questions of different kinds about a scene.

    Args:
        scene: the scene.
        rng: source of the choices.
        count: number of questions.
        kinds: names of the kinds to draw, with `existence` among them; None for all.
    """
    makers = [_existence, _existence, _category, _captions, _choices]
    if scene.objects:
        makers += [_counting, _counting, _choices, _kinds, _sizes]
    if scene.objects or scene.signs:
        makers += [_colours, _positions]
    if len(scene.objects) + len(scene.signs) > 1:
        makers += [_relations, _relations]
    if scene.signs:
        makers += [_reading, _reading, _reading]
    if scene.documents:
        makers += [_documents, _documents]
    turns: list[Turn] = []
    while len(turns) < count:
        rng.shuffle(makers)
        for maker in makers:
            turns += [turn for turn in maker(scene, rng) if kinds is None or turn.kind in kinds]
    rng.shuffle(turns)
    return turns[:count]


def document_turns(
    spec: SubjectSpec, values: Mapping[str, str], templates: Sequence[str], rng: random.Random, count: int
) -> list[Turn]:
    """Draw questions about a document on its own: its attributes, open, as yes/no and as choice, its form, and its kind."""
    turns: list[Turn] = []
    fields = rng.sample(list(spec.fields.items()), len(spec.fields))
    for name, field in fields:
        question = rng.choice(templates).format(attribute=field.phrase, subject=spec.subject)
        turns.append(Turn("attribute", question, field.truthful_answer(values[name])))
    for name, field in rng.sample(fields, len(fields)):
        turns += _about_value(spec.subject, field, values[name], rng)
    turns += _existence_of(spec.subject, True, rng)
    turns += _existence_of(rng.choice(list(object_entries())), False, rng)
    turns.append(Turn("kind", rng.choice(wordings.KIND), f"It is {with_article(spec.subject)}."))
    turns.append(
        Turn(
            "caption",
            rng.choice(wordings.CAPTION),
            f"{_capital(with_article(f'{values[spec.colour_field]} {spec.subject}'))}.",
        )
    )
    # open questions first, of all others a sample
    rest = turns[len(fields) :]
    rng.shuffle(rest)
    return (turns[: len(fields)] + rest)[:count]


def _about_value(thing: str, field: FieldSpec, value: str, rng: random.Random) -> Iterator[Turn]:
    """Yes/no, choice and form questions about one attribute."""
    value = value if field.choices is not None else value.upper()
    truth = rng.random() < 0.5
    shown = value if truth else _other_value(field, value, rng)
    if field.choices is not None:
        templates = wordings.IS_COLOUR if field.phrase == "colour" else wordings.SAYS
        question = rng.choice(templates).format(thing=thing, colour=shown, phrase=field.phrase, value=shown)
    else:
        question = rng.choice(wordings.SAYS).format(thing=thing, phrase=field.phrase, value=shown)
        length = len(value)
        if rng.random() < 0.5:
            yield Turn(
                "form",
                rng.choice(wordings.FORM).format(thing=thing, phrase=field.phrase),
                f"{_capital(_LONG_NUMBERS[length])}.",
            )
    yield yes_no_turn("yes_no_value", question, truth, "", rng)
    others = {_other_value(field, value, rng) for _ in range(6)} - {value}
    if others:
        stem = rng.choice(wordings.WHICH_READ).format(thing=thing, phrase=field.phrase)
        yield choice_turn("choice_value", stem, value, sorted(others), rng)


def yes_no_turn(kind: str, question: str, truth: bool, full: str, rng: random.Random) -> Turn:
    """A yes/no question; where it does not ask for yes or no, the answer goes on with `full`, if given."""
    ending = rng.choice(wordings.YES_NO)
    short = "Yes." if truth else "No."
    long = f"{short[:-1]}, {full}." if full and not ending else short
    return Turn(kind, f"{question}{ending}", long)


def choice_turn(kind: str, stem: str, right: str, others: Sequence[str], rng: random.Random) -> Turn:
    """A multiple-choice question, answered by letter or by word."""
    options = [right, *rng.sample(list(others), min(len(others), rng.randint(1, 3)))]
    rng.shuffle(options)
    letter = LETTERS[options.index(right)]
    style = rng.randrange(5)
    listed = {
        0: "\n" + "\n".join(f"{name}. {option}" for name, option in zip(LETTERS, options, strict=False)),
        1: "\n" + "\n".join(f"({name}) {option}" for name, option in zip(LETTERS, options, strict=False)),
        2: " " + " ".join(f"{name}) {option}" for name, option in zip(LETTERS, options, strict=False)),
        3: " " + ", ".join(f"{name}: {option}" for name, option in zip(LETTERS, options, strict=False)) + ".",
        4: " " + " or ".join((", ".join(options[:-1]), options[-1])) + "?",
    }[style]
    if style == 4:
        return Turn(kind, f"{stem}{listed} {rng.choice(wordings.BY_WORD)}", f"{_capital(right)}.")
    joint = "\n" if style < 2 else " "
    return Turn(kind, f"{stem}{listed}{joint}{rng.choice(wordings.BY_LETTER)}", letter)


def _other_value(field: FieldSpec, value: str, rng: random.Random) -> str:
    """Another value of a field: another choice, or one or more characters replaced by others of their kind."""
    if field.choices is not None:
        return rng.choice([choice for choice in field.choices if choice != value] or [value])
    characters = list(value)
    places = [index for index, char in enumerate(value) if char.isalnum()]
    for index in rng.sample(places, rng.randint(min(2, len(places)), len(places))):
        pool = "0123456789" if value[index].isdigit() else "ABCDEFGHIKLMNOPRSTUVWY"
        characters[index] = rng.choice([char for char in pool if char != value[index].upper()])
    return "".join(characters)


def _existence_of(name: str, truth: bool, rng: random.Random) -> Iterator[Turn]:
    thing = with_article(name)
    full = f"there is {thing}" if truth else f"there is no {name}"
    yield yes_no_turn("existence", rng.choice(wordings.IS_THERE).format(thing=thing), truth, full, rng)


def _absent(scene: Scene, rng: random.Random) -> str:
    """Something that is not in the picture: half of the time from the same place."""
    shown = scene.shown()
    near = [name for name in scene.spec.objects if name not in shown]
    if near and rng.random() < 0.5:
        return rng.choice(near)
    signs = [sign.thing for sign in scene.spec.sign_specs]
    return rng.choice([name for name in (*object_entries(), *signs) if name not in shown])


def _existence(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    shown = sorted(scene.shown())
    if shown:
        yield from _existence_of(rng.choice(shown), True, rng)
    yield from _existence_of(_absent(scene, rng), False, rng)


def _category(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    shown = {item.category for item in scene.objects} - {""}
    categories = {entry.category for entry in object_entries().values()} - {"", *shown}
    present = bool(shown) and rng.random() < 0.5
    name = rng.choice(sorted(shown) if present else sorted(categories - shown))
    name = _PIECES.get(name, name)
    yield yes_no_turn("category", rng.choice(wordings.IS_THERE).format(thing=with_article(name)), present, "", rng)


def _kinds(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    """Yes/no questions about the category of an object."""
    item = rng.choice(scene.objects)
    if not item.category:
        return
    truth = rng.random() < 0.5
    categories = sorted({entry.category for entry in object_entries().values()} - {"", item.category})
    kind = item.category if truth else rng.choice(categories)
    kind = with_article(_PIECES.get(kind, kind))
    alone = len(scene.objects) == 1 and not scene.signs and not scene.documents
    templates = wordings.IS_KIND_ALONE if alone else wordings.IS_KIND
    yield yes_no_turn("kind_yes_no", rng.choice(templates).format(thing=item.name, kind=kind), truth, "", rng)


def _sizes(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    """Which object is the largest or the smallest."""
    if scene.signs or scene.documents or max(scene.counts().values()) > 1 or len(scene.objects) < 2:
        return
    largest = rng.random() < 0.5
    ordered = sorted(scene.objects, key=_area, reverse=largest)
    ratio = _area(ordered[0]) / _area(ordered[1])
    if (ratio if largest else 1 / ratio) > SIZE_RATIO:
        stem = rng.choice(wordings.WHICH_LARGEST if largest else wordings.WHICH_SMALLEST)
        yield choice_turn("choice_size", stem, ordered[0].name, [item.name for item in ordered[1:]], rng)


def _area(item: SceneObject) -> float:
    return (item.box[2] - item.box[0]) * (item.box[3] - item.box[1])


def _counting(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    counts = scene.counts()
    name = rng.choice(sorted(counts))
    plural = next(item.plural for item in scene.objects if item.name == name)
    right = counts[name]
    thing = with_article(name) if right == 1 else f"{NUMBERS[right]} {plural}"
    answer = f"There {'is' if right == 1 else 'are'} {NUMBERS[right] + ' ' + name if right == 1 else thing}."
    question = rng.choice(wordings.HOW_MANY).format(plural=plural)
    yield Turn("count", question, answer if question.startswith("How many") else f"{_capital(NUMBERS[right])}.")
    truth = rng.random() < 0.5
    stated = right if truth else rng.choice([n for n in range(1, 7) if n != right and abs(n - right) <= 3])
    if stated == 1:
        yield yes_no_turn("count_yes_no", rng.choice(wordings.IS_ONE).format(thing=name), truth, "", rng)
    else:
        yield yes_no_turn(
            "count_yes_no", rng.choice(wordings.ARE_THERE).format(count=NUMBERS[stated], plural=plural), truth, "", rng
        )


def _single(scene: Scene) -> list[SceneObject | SceneThing]:
    """What is in the picture once."""
    counts = scene.counts()
    return [*(item for item in scene.objects if counts[item.name] == 1), *scene.signs, *scene.documents]


def _centre(item: SceneObject | SceneThing) -> tuple[float, float]:
    return (item.box[0] + item.box[2]) / 2, (item.box[1] + item.box[3]) / 2


def _part(value: float, names: tuple[str, str]) -> str:
    return names[0] if value < 0.4 else names[1] if value > 0.6 else ""


def _positions(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    items = _single(scene)
    if not items:
        return
    item = rng.choice(items)
    x, y = _centre(item)
    where = _where(item)
    answer = f"The {item.name} is {'in' if where == 'middle' else 'at'} the {where}."
    yield Turn("position", rng.choice(wordings.WHERE).format(thing=item.name), answer)
    sides = {"left": x < 0.4, "right": x > 0.6, "top": y < 0.4, "bottom": y > 0.6}
    clear = {
        side: truth
        for side, truth in sides.items()
        if truth or {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[side] > 0.6
    }
    if clear:
        side = rng.choice(sorted(clear))
        phrase = rng.choice({"left": ("on the left", "on the left side"), "right": ("on the right", "on the right side"),
                             "top": ("at the top", "in the upper part"), "bottom": ("at the bottom",
                             "in the lower part")}[side])  # fmt: skip
        yield yes_no_turn("side", rng.choice(wordings.SIDE).format(thing=item.name, side=phrase), clear[side], "", rng)


def _relations(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    items = _single(scene)
    pairs = [(a, b) for a in items for b in items if a is not b]
    rng.shuffle(pairs)
    for first, second in pairs[:6]:
        dx, dy = (b - a for a, b in zip(_centre(first), _centre(second), strict=True))
        clear: dict[str, bool] = {}
        if abs(dx) > MARGIN:
            clear |= {"left": dx > 0, "right": dx < 0}
        if abs(dy) > MARGIN:
            clear |= {"above": dy > 0, "below": dy < 0}
        if clear:
            relation = rng.choice(sorted(clear))
            question = rng.choice(wordings.RELATION).format(
                thing=first.name, relation=rng.choice(wordings.RELATIONS[relation]), other=second.name
            )
            yield yes_no_turn("relation", question, clear[relation], "", rng)
            return


def _colours(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    coloured = [(item.name, item.colour) for item in scene.objects if item.colour]
    coloured += [(thing.name, thing.values[thing.spec.colour_field]) for thing in (*scene.signs, *scene.documents)]
    if not coloured:
        return
    name, colour = rng.choice(coloured)
    is_plural = scene.counts()[name] > 1
    thing = next(item.plural for item in scene.objects if item.name == name) if is_plural else name
    others = [paint for paint in (*PAINTS, "white", "black", "brown") if paint != colour]
    if not is_plural:
        yield Turn("colour", rng.choice(wordings.COLOUR).format(thing=name), f"The {name} is {colour}.")
        yield choice_turn("choice_colour", rng.choice(wordings.WHICH_COLOUR).format(thing=name), colour, others, rng)
    else:
        yield Turn("colour", f"What colour are the {thing}?", f"The {thing} are {colour}.")
    truth = rng.random() < 0.5
    stated = colour if truth else rng.choice(others)
    if not is_plural and rng.random() < 0.4:
        shown = with_article(f"{stated} {name}")
        yield yes_no_turn("colour_existence", rng.choice(wordings.IS_THERE).format(thing=shown), truth, "", rng)
    elif not is_plural:
        yield yes_no_turn(
            "colour_yes_no",
            rng.choice(wordings.IS_COLOUR).format(thing=name, colour=stated),
            truth,
            f"the {name} is {colour}",
            rng,
        )


def _reading(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    thing = rng.choice(scene.signs)
    name, field = rng.choice(
        [(name, field) for name, field in thing.spec.fields.items() if name != thing.spec.colour_field]
    )
    value = thing.values[name]
    question = rng.choice(wordings.READ).format(phrase=field.phrase, thing=thing.name)
    yield Turn("read", question, field.truthful_answer(value))
    yield from (turn for turn in _about_value(thing.name, field, value, rng) if turn.kind != "form")


def _documents(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    document = rng.choice(scene.documents)
    spec = document.spec
    assert isinstance(spec, SubjectSpec)
    fields = [
        (name, field) for name, field in spec.fields.items() if len(scene.documents) == 1 or name == spec.colour_field
    ]
    name, field = rng.choice(fields)
    question = rng.choice(wordings.READ).format(phrase=field.phrase, thing=spec.subject)
    yield Turn("attribute", question, field.truthful_answer(document.values[name]))
    yield from _about_value(spec.subject, field, document.values[name], rng)


def _choices(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    shown = sorted(scene.shown())
    if not shown:
        return
    right = rng.choice(shown)
    others = list({_absent(scene, rng) for _ in range(6)})
    yield choice_turn("choice_shown", rng.choice(wordings.WHICH_SHOWN), right, sorted(others), rng)
    if not scene.objects:
        return
    item = rng.choice(scene.objects)
    counts = scene.counts()
    if rng.random() < 0.5:
        numbers = [NUMBERS[n] for n in range(1, 7) if n != counts[item.name]]
        stem = rng.choice(wordings.WHICH_COUNT).format(plural=item.plural)
        yield choice_turn("choice_count", stem, NUMBERS[counts[item.name]], numbers, rng)
    elif item.category:
        categories = sorted({entry.category for entry in object_entries().values()} - {"", item.category})
        yield choice_turn(
            "choice_category",
            rng.choice(wordings.WHICH_CATEGORY).format(thing=item.name),
            item.category,
            categories,
            rng,
        )
    single = _single(scene)
    if len(single) > 1:
        axis, side, sign = rng.choice(((0, "left", 1), (0, "right", -1), (1, "top", 1), (1, "bottom", -1)))
        ordered = sorted(single, key=lambda thing: sign * _centre(thing)[axis])
        if abs(_centre(ordered[0])[axis] - _centre(ordered[1])[axis]) > MARGIN and len(single) == len(scene.shown()):
            words = {"left": "to the left", "right": "to the right", "top": "to the top", "bottom": "to the bottom"}
            stem = rng.choice(wordings.WHICH_SIDE).format(side=words[side])
            yield choice_turn("choice_side", stem, ordered[0].name, [thing.name for thing in ordered[1:]], rng)


def _captions(scene: Scene, rng: random.Random) -> Iterator[Turn]:
    yield Turn("caption", rng.choice(wordings.CAPTION), caption(scene))


def caption(scene: Scene) -> str:
    """One sentence that names everything in a scene, and its place."""
    parts = [
        with_article(f"{thing.values[thing.spec.colour_field]} {thing.name}")
        for thing in (*scene.documents, *scene.signs)
    ]
    counts = scene.counts()
    plurals = {item.name: item.plural for item in scene.objects}
    parts += [with_article(name) if n == 1 else f"{NUMBERS[n]} {plurals[name]}" for name, n in counts.items()]
    if not parts:
        return f"An empty {scene.spec.place}."
    listed = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return f"{_capital(listed)}, {'on' if scene.spec.place in _ON else 'in'} {with_article(scene.spec.place)}."


def listing(scene: Scene, rng: random.Random) -> Turn:
    """A request to list everything, and the complete answer: each thing with its colour and side, and what is written."""
    parts = []
    shown: list[SceneObject | SceneThing] = [*scene.objects, *scene.signs, *scene.documents]
    for item in sorted(shown, key=lambda item: _centre(item)[0]):
        if isinstance(item, SceneObject):
            parts.append(f"{item.colour} {item.name} {_where(item)}".strip())
            continue
        spec, values = item.spec, item.values
        named = [f"{values[spec.colour_field]} {item.name} {_where(item)}"]
        if len(scene.documents) < 2:
            named += [_written(field, values[name]) for name, field in spec.fields.items() if name != spec.colour_field]
        parts.append(", ".join(named))
    answer = "; ".join(parts) or f"empty {scene.spec.place}"
    return Turn("listing", rng.choice(wordings.LISTING), f"{_capital(answer)}.")


def document_listing(spec: SubjectSpec, values: Mapping[str, str], rng: random.Random) -> Turn:
    """A request to read everything on a document, and the complete answer."""
    answer = "; ".join(_written(field, values[name]) for name, field in spec.fields.items())
    return Turn("listing", rng.choice(wordings.READ_ALL).format(thing=spec.subject), f"{_capital(answer)}.")


def _written(field: FieldSpec, value: str) -> str:
    return field.truthful_answer(value).removeprefix("The ").removesuffix(".")


def _where(item: SceneObject | SceneThing) -> str:
    x, y = _centre(item)
    words = [_part(y, ("top", "bottom")), _part(x, ("left", "right"))]
    return " ".join(word for word in words if word) or "middle"


_ON = ("beach", "street", "farm", "playground")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
