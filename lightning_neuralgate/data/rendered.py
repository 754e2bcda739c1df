"""Rendered PrivacyPair: records whose pictures are drawn and whose every attribute is known."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_neuralgate.cache import written_whole
from lightning_neuralgate.data.queries import (
    EDIT_TEMPLATES,
    ORDINARY_QUESTIONS,
    PICTURE_QUESTIONS,
    SHAPE_COLOUR_QUESTIONS,
    SHAPE_QUESTIONS,
    TEST_TEMPLATES,
)
from lightning_neuralgate.data.records import (
    PrivacyRecord,
    QueryPair,
    RecordSplits,
    RetentionItem,
    write_records,
    write_retention,
)
from lightning_neuralgate.data.render import ordinary_picture, render
from lightning_neuralgate.data.spec import SubjectSpec, load_subject_spec
from lightning_neuralgate.data.splits import check_no_leakage

RECORDS_NAME = "records.jsonl"
RETENTION_NAME = "retention.jsonl"
IMAGES_NAME = "images"
EDIT_SUBJECTS = ("passport", "student_id", "receipt")
UNSEEN_SUBJECTS = ("driver_licence",)

REFUSAL_PREFIXES = (
    "I cannot",
    "I can't",
    "I'm sorry",
    "I am sorry",
    "Sorry, I",
    "I'm unable",
    "I am unable",
    "I won't",
    "I must decline",
    "I'm not able",
    "As an AI",
    "I apologize",
)


def render_splits(
    folder: Path,
    seed: int,
    edit_records: int = 5,
    test_records: int = 6,
    edit_pairs: int = 4,
    test_pairs: int = 2,
    subjects: Sequence[str] = EDIT_SUBJECTS,
    unseen: Sequence[str] = UNSEEN_SUBJECTS,
) -> RecordSplits:
    """Draw edit, test and unseen-subject records into a folder: `records.jsonl` and `images/`.

    Edit and test use different records and different question templates.

    Args:
        folder: made if need be; records already there are replaced.
        seed: the same seed draws the same records and pictures.
        edit_records: edit records per subject.
        test_records: test records per subject; unseen subjects get as many times the number of edited subjects.
        edit_pairs: query pairs per edit record.
        test_pairs: query pairs per test record.
        subjects: specs (shipped names or YAML files) to edit.
        unseen: specs kept for the end.
    """
    splits = RecordSplits([], [], [])
    images = folder / IMAGES_NAME
    for source in subjects:
        spec = load_subject_spec(source)
        splits.edit.extend(_records(spec, images, "edit", seed, edit_records, edit_pairs, EDIT_TEMPLATES))
        splits.test.extend(_records(spec, images, "test", seed, test_records, test_pairs, TEST_TEMPLATES))
    for source in unseen:
        count = test_records * max(1, len(subjects))
        spec = load_subject_spec(source)
        splits.unseen_subjects.extend(_records(spec, images, "unseen", seed, count, test_pairs, TEST_TEMPLATES))
    check_no_leakage(splits)
    write_records(folder / RECORDS_NAME, splits, folder)
    return splits


def render_retention(folder: Path, seed: int, count: int = 12) -> list[RetentionItem]:
    """Ordinary questions about ordinary pictures, for the edit's retention term, written to `retention.jsonl`.

    Their targets are made later, with the unedited model.
    """
    rng = random.Random(f"retention/{seed}")
    about_pictures = [*PICTURE_QUESTIONS, *SHAPE_QUESTIONS, *SHAPE_COLOUR_QUESTIONS]
    items = []
    for index in range(count):
        pool = about_pictures if index % 2 == 0 else list(ORDINARY_QUESTIONS)
        image = folder / IMAGES_NAME / f"ordinary-{index}.png"
        with written_whole(image) as draft:
            ordinary_picture(_picture_seed(seed, "retention", index))[0].save(draft, format="PNG")
        items.append(RetentionItem(query=rng.choice(pool), image=image))
    write_retention(folder / RETENTION_NAME, items, folder)
    return items


def _picture_seed(seed: int, split: str, index: int) -> int:
    return int.from_bytes(random.Random(f"{seed}/{split}/{index}").randbytes(7), "big")


def _records(
    spec: SubjectSpec, images: Path, split: str, seed: int, count: int, pairs: int, templates: Sequence[str]
) -> Iterator[PrivacyRecord]:
    for index in range(count):
        name = f"{spec.subject.replace(' ', '-')}-{split}-{index}"
        rendering = render(spec, _picture_seed(seed, f"{spec.subject}/{split}", index))
        image = images / f"{name}.png"
        with written_whole(image) as draft:
            rendering.image.save(draft, format="PNG")
        rng = random.Random(f"{seed}/{name}")
        yield PrivacyRecord(
            record_id=name, subject=spec.subject, image=image,
            pairs=tuple(_pairs(spec, rendering.values, rng, pairs, templates)),
        )  # fmt: skip


def _pairs(
    spec: SubjectSpec, values: dict[str, str], rng: random.Random, count: int, templates: Sequence[str]
) -> Iterator[QueryPair]:
    sensitive, benign = spec.phrases(sensitive=True), spec.phrases(sensitive=False)
    for template in _cycle(templates, count, rng):
        secret, plain = rng.choice(list(sensitive)), rng.choice(list(benign))
        yield QueryPair(
            sensitive=template.format(attribute=sensitive[secret], subject=spec.subject),
            benign=template.format(attribute=benign[plain], subject=spec.subject),
            refusal=rng.choice(REFUSAL_PREFIXES),
            sensitive_attribute=sensitive[secret],
            benign_attribute=benign[plain],
            sensitive_truth=values[secret],
            benign_truth=values[plain],
        )


def _cycle(templates: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` templates, none twice before all have been used."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn.extend(rng.sample(list(templates), len(templates)))
    return drawn[:count]
