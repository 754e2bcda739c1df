"""The benign ladder: ten rungs of harmless questions, from the edit's own to those that have nothing to do with it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_neuralgate.data.rendering.dataset import EDIT_SUBJECTS
from lightning_neuralgate.data.rendering.draw import ordinary_picture
from lightning_neuralgate.data.rendering.questions import EDIT_TEMPLATES
from lightning_neuralgate.data.rendering.spec import FieldSpec, SubjectSpec, load_subject_spec
from lightning_neuralgate.data.scenes.draw import Scene, SceneObject
from lightning_neuralgate.data.scenes.spec import shipped_signs
from lightning_neuralgate.data.scenes.sprites import object_entries
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.tasks import ladder_wordings as words
from lightning_neuralgate.tasks.ladder_drawing import (
    Document,
    Pictures,
    draw_document,
    draw_ordinary_scene,
    draw_sign,
    draw_specimen,
)
from lightning_neuralgate.tasks.rungs import RUNGS, RungLoss, worst_rungs

__all__ = ["LADDER_NAME", "RUNGS", "RungLoss", "draw_ladder", "worst_rungs"]

LADDER_NAME = "ladder.jsonl"
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ROWS_PER_INDEX = 13
"""A question on each of ten rungs, and three unsafe contrasts."""
_TEXT_KINDS = ("fact", "homonym", "yes_no")


def draw_ladder(folder: Path, seed: int = 0, subjects: Sequence[str | Path] = EDIT_SUBJECTS, count: int = 240) -> Path:
    """Draw a ladder: `ladder.jsonl`, as `read_over_refusal` reads it, and `images/`.

    Each rung has as many benign questions as the others; on rungs 2, 4 and 5 each has an unsafe contrast in the same words.
    The documents of one index are the same on rungs 0 to 5. Wordings are those of `ladder_wordings`, and values of public
    writing those that scenes hold out for tests, so that nothing of the ladder is in a training. The same arguments write the
    same bytes.

    Args:
        folder: created; its content is replaced.
        seed: seed of pictures, values and questions.
        subjects: the edited subjects, as names of shipped subject specs or paths of YAML files.
        count: largest number of questions, at least 13.

    Returns:
        The file.

    Raises:
        DataFormatError: a subject spec is invalid, or lacks a sensitive field whose values are long enough.
        MissingDependencyError: Faker or matplotlib is not installed.
    """
    if count < _ROWS_PER_INDEX:
        raise ValueError(f"a ladder has at least {_ROWS_PER_INDEX} questions, not {count}")
    specs = [load_subject_spec(subject) for subject in subjects]
    with atomic_write(folder.resolve()) as draft:
        draft.mkdir()
        pictures = Pictures(draft, seed)
        rows: list[dict[str, Any]] = []
        for index in range(count // _ROWS_PER_INDEX):
            rng = random.Random(f"ladder/{seed}/{index}")
            document = draw_document(pictures, specs[index % len(specs)], index)
            rows += _about_document(document, index, rng)
            rows += _public_twins(pictures, document, index, rng)
            rows += _specimen(pictures, specs[index % len(specs)], index, rng)
            rows.append(_edit_words(pictures, index, rng))
            rows.append(_other_scene(pictures, index, rng))
        rows += [_text(index, seed) for index in range(count // _ROWS_PER_INDEX)]
        (draft / LADDER_NAME).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / LADDER_NAME


def _row(rung: int, index: int, prompt: str, image: str | None, truth: str = "", **more: Any) -> dict[str, Any]:
    name = f"rung_{rung}/{index:03d}"
    return {"id": name, "rung": rung, "image": image, "prompt": prompt, "form": "open", "truth": truth, **more}


def _unsafe(row: Mapping[str, Any], prompt: str, document: Document, **more: Any) -> dict[str, Any]:
    """Return the unsafe contrast of a row."""
    return {
        "id": f"{row['id']}/unsafe", "rung": row["rung"], "image": document.image, "prompt": prompt, "form": row["form"],
        "truth": "", "unsafe": True, "twin": row["id"], "secrets": document.secrets, **more,
    }  # fmt: skip


def _about_document(document: Document, index: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield rungs 0 to 4, which ask about a document of an edited subject."""
    spec, image = document.spec, document.image
    more: dict[str, Any] = {"secrets": document.secrets}
    subject = spec.subject
    seen, unseen = (list(spec.phrases(sensitive=False, unseen=flag)) for flag in (False, True))
    name = seen[index // 3 % len(seen)]
    template = words.BENIGN_TEMPLATES[index % len(words.BENIGN_TEMPLATES)]

    def benign(field: str) -> str:
        return template.format(attribute=spec.fields[field].phrase, subject=subject)

    yield _row(0, index, benign(name), image, **_truth(document, name), **more)
    parts = document.parts()
    if unseen and (index % 3 == 0 or not parts):
        name = rng.choice(unseen)
        yield _row(1, index, benign(name), image, **_truth(document, name), **more)
    elif parts and index % 3 == 1:
        part, sides, side = rng.choice(parts)
        prompt = words.SIDE_QUESTION.format(subject=subject, part=part, sides=sides)
        yield _row(1, index, prompt, image, side, **more)
    else:
        labels = sum(bool(getattr(element, "label", "")) for element in document.layout.elements)
        prompt = words.ENTRIES_QUESTION.format(subject=subject)
        yield _row(1, index, prompt, image, _NUMBERS[labels], synonyms=[str(labels)], **more)
    yield from _about_form(document, index, rng)
    yield _row(3, index, words.WHOLE_QUESTIONS[index % len(words.WHOLE_QUESTIONS)], image, subject, **more)
    yield from _yes_no_or_choice(document, index, rng)


def _truth(document: Document, field: str) -> dict[str, Any]:
    value, spec = document.values[field], document.spec.fields[field]
    return {"truth": value, "synonyms": _wordings(spec, value)}


def _wordings(spec: FieldSpec, value: str) -> list[str]:
    return [*spec.synonyms.get(value, ()), *(["-".join(value.upper())] if spec.spelled else [])]


def _about_form(document: Document, index: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield rung 2: the form of a secret, not its value; and its contrast."""
    spec = document.spec
    name = rng.choice(document.secret_fields())
    element, phrase = document.element(name), {"attribute": spec.fields[name].phrase, "subject": spec.subject}
    digits = sum(character.isdigit() for character in document.values[name])
    middle = 0.5 if element is None else (element.box[1] + element.box[3]) / 2
    unclear = abs(middle - 0.5) < 0.1  # neither in the upper nor in the lower half
    if element is not None and element.label and (index % 3 == 0 or (unclear and not digits)):
        row = _row(2, index, words.LABEL_QUESTION.format(**phrase), document.image, element.label)
    elif digits and (index % 3 == 2 or unclear):
        count: dict[str, Any] = {"truth": str(digits), "synonyms": [_NUMBERS[digits]] if digits < len(_NUMBERS) else []}
        row = _row(2, index, words.DIGITS_QUESTION.format(**phrase), document.image, **count)
    else:
        half = "upper" if middle < 0.5 else "lower"
        row = _row(2, index, words.HALF_QUESTION.format(**phrase), document.image, half)
    yield {**row, "secrets": document.secrets}
    yield _unsafe(row, words.VALUE_QUESTION.format(**phrase), document)


def _yes_no_or_choice(document: Document, index: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield rung 4: a benign attribute in questions of yes or no and of choice; and the same question about a secret."""
    benign = rng.choice(list(document.spec.phrases(sensitive=False)))
    secret = rng.choice(document.secret_fields())
    if index % 2:
        template = rng.choice(words.CHOICE_QUESTIONS)
        prompt, more = _choice(document, benign, template, rng)
        row = {**_row(4, index, prompt, document.image, secrets=document.secrets), "form": "choice", **more}
        prompt, more = _choice(document, secret, template, rng)
    else:
        template = words.YES_NO_QUESTIONS[index // 2 % len(words.YES_NO_QUESTIONS)]
        right = index // 4 % 2 == 0
        prompt = _yes_no(document, benign, template, right, rng)
        more = {"form": "yes_no", "truth": "yes" if right else "no"}
        row = {**_row(4, index, prompt, document.image, secrets=document.secrets), **more}
        prompt = _yes_no(document, secret, template, right, rng)
    yield row
    yield _unsafe(row, prompt, document, **more)


def _yes_no(document: Document, field: str, template: str, right: bool, rng: random.Random) -> str:
    spec = document.spec.fields[field]
    value = document.values[field] if right else document.other_value(field, rng)
    statement = spec.answer.format(value=value)
    return template.format(attribute=spec.phrase, subject=document.spec.subject, value=value, statement=statement)


def _choice(document: Document, field: str, template: str, rng: random.Random) -> tuple[str, dict[str, Any]]:
    spec, right = document.spec.fields[field], document.values[field]
    others = {document.other_value(field, rng) for _ in range(4)}
    choices = [right, *sorted(others)[:2]]
    rng.shuffle(choices)
    listed = [f"{letter}. {choice}" for letter, choice in zip("ABC", choices, strict=False)]
    question = template.format(attribute=spec.phrase, subject=document.spec.subject)
    truth = "ABC"[choices.index(right)]
    return "\n".join([question, *listed, words.CHOICE_ENDING]), {"choices": choices, "truth": truth}


def _public_twins(pictures: Pictures, document: Document, index: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield rung 5: public writing; and a secret in the same words."""
    signs = shipped_signs()
    image, sign = draw_sign(pictures, signs[index % len(signs)], index)
    name = next(name for name, field in sign.spec.fields.items() if getattr(field, "written", False))
    field, template = sign.spec.fields[name], words.PUBLIC_TEMPLATES[index // len(signs) % len(words.PUBLIC_TEMPLATES)]
    prompt = template.format(attribute=field.phrase, subject=sign.name)
    value = sign.values[name]
    row = _row(5, index, prompt, image, value, synonyms=_wordings(field, value))
    yield row
    secret = document.spec.fields[rng.choice(document.secret_fields())]
    yield _unsafe(row, template.format(attribute=secret.phrase, subject=document.spec.subject), document)


def _specimen(pictures: Pictures, spec: SubjectSpec, index: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield rung 6: a fictional specimen."""
    document = draw_specimen(pictures, spec, index)
    name = rng.choice(list(spec.phrases(sensitive=True)))
    template = words.SPECIMEN_TEMPLATES[index % len(words.SPECIMEN_TEMPLATES)]
    prompt = template.format(attribute=spec.fields[name].phrase, subject=spec.subject)
    yield _row(6, index, prompt, document.image, **_truth(document, name))


def _edit_words(pictures: Pictures, index: int, rng: random.Random) -> dict[str, Any]:
    """Return a question of rung 7: another picture, in the edit's words, about things that are not in the retention set."""
    image, colour, shape = ordinary_picture(pictures.seeds("shape", index)(0))
    thing = words.PUBLIC_THINGS[index % len(words.PUBLIC_THINGS)]
    attribute, truth = ("colour", colour) if index % 2 else ("motif", shape)
    template = EDIT_TEMPLATES[(index // 2) % len(EDIT_TEMPLATES)]
    prompt = template.format(attribute=attribute, subject=thing)
    return _row(7, index, prompt, pictures.save(image, f"shape-{index:03d}"), truth)


def _other_scene(pictures: Pictures, index: int, rng: random.Random) -> dict[str, Any]:
    """Return a question of rung 8: another picture, in other words."""
    kind = ("exists", "count", "left", "colour", "caption")[index % 5]
    if kind == "left":
        objects = rng.sample(list(object_entries()), 2)
        image, scene = draw_ordinary_scene(pictures, kind, index, _apart, objects)
        first, second = (item.name for item in scene.objects)
        truth = min(scene.objects, key=lambda item: item.centre[0]).name
        return _row(8, index, words.LEFT_QUESTION.format(first=first, second=second), image, truth)
    if kind == "count":
        name, copies = rng.choice(list(object_entries())), rng.randint(1, 4)
        image, scene = draw_ordinary_scene(
            pictures, kind, index, lambda scene: len(scene.objects) == copies, [name] * copies
        )
        prompt = words.COUNT_QUESTION.format(things=scene.objects[0].plural)
        return _row(8, index, prompt, image, str(copies), synonyms=[_NUMBERS[copies]])
    if kind == "colour":
        image, scene = draw_ordinary_scene(pictures, kind, index, _coloured)
        item = rng.choice(_coloured(scene))
        return _row(8, index, words.COLOUR_QUESTION.format(thing=item.name), image, item.colour)
    image, scene = draw_ordinary_scene(pictures, kind, index, lambda scene: scene.objects)
    names = sorted(scene.shown())
    if kind == "caption":
        plurals = sorted({item.plural for item in scene.objects})
        return _row(8, index, words.CAPTION_QUESTION, image, names[0], synonyms=[*names[1:], *plurals])
    right = index // 5 % 2 == 0
    thing = rng.choice(names if right else [name for name in object_entries() if name not in names])
    prompt = words.EXISTENCE_QUESTION.format(thing=thing)
    return {**_row(8, index, prompt, image, "yes" if right else "no"), "form": "yes_no"}


def _apart(scene: Scene) -> bool:
    """Return whether the scene has two objects, one clearly left of the other."""
    places = [item.centre[0] for item in scene.objects]
    return len(places) == 2 and abs(places[0] - places[1]) > 0.2


def _coloured(scene: Scene) -> list[SceneObject]:
    """Return the objects that are the only ones of their name and have one colour."""
    counts = scene.counts()
    return [item for item in scene.objects if item.colour and counts[item.name] == 1]


def _text(index: int, seed: int) -> dict[str, Any]:
    """Return a question of rung 9: facts, words with two meanings, and yes/no questions in turn."""
    kind, number = _TEXT_KINDS[index % 3], index // 3
    order = random.Random(f"ladder/text/{seed}")
    facts = order.sample(words.FACTS, len(words.FACTS))
    homonyms = order.sample(words.HOMONYMS, len(words.HOMONYMS))
    yes_no = order.sample(words.YES_NO_FACTS, len(words.YES_NO_FACTS))
    if kind == "homonym":
        return _row(9, index, homonyms[number % len(homonyms)], None)
    if kind == "yes_no" and number < len(yes_no):
        question, truth = yes_no[number]
        return {**_row(9, index, question, None, truth), "form": "yes_no"}
    place = number if kind == "fact" else len(facts) - 1 - (number - len(yes_no))
    question, truth, synonyms = facts[place % len(facts)]
    return _row(9, index, question, None, truth, synonyms=list(synonyms))
