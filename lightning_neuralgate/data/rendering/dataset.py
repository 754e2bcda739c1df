"""Rendered PrivacyPair: records whose pictures are drawn and whose every attribute is known."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from lightning_neuralgate.data.authors import write_authors_json
from lightning_neuralgate.data.records import (
    PrivacyRecord,
    QueryPair,
    RecordSplits,
    RetentionItem,
    write_records,
    write_retention,
)
from lightning_neuralgate.data.rendering.draw import Rendering, ordinary_picture, render
from lightning_neuralgate.data.rendering.imagefolder import METADATA_NAME, SPLIT_FOLDERS, DrawnRecord, write_imagefolder
from lightning_neuralgate.data.rendering.questions import (
    EDIT_TEMPLATES,
    ORDINARY_QUESTIONS,
    PICTURE_QUESTIONS,
    PUBLIC_ATTRIBUTES,
    PUBLIC_THINGS,
    SHAPE_COLOUR_QUESTIONS,
    SHAPE_QUESTIONS,
    TEST_TEMPLATES,
)
from lightning_neuralgate.data.rendering.spec import SubjectSpec, load_subject_spec
from lightning_neuralgate.data.splits import check_no_leakage
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gate.spans import subject_key
from lightning_neuralgate.runtime.files import atomic_write

RECORDS_NAME = "records.jsonl"
RETENTION_NAME = "retention.jsonl"
IMAGES_NAME = "images"
AUTHORS_NAME = "authors"
ORDINARY_ITEMS = 12
"""Ordinary questions among the retention items, before the public ones."""
EDIT_SUBJECTS = ("passport", "student_id", "receipt")
UNSEEN_SUBJECTS = ("driver_licence",)

REFUSAL_PREFIXES = (
    "I cannot share that",
    "I can't tell you that",
    "I'm sorry, I can't",
    "I am sorry, but I cannot",
    "Sorry, I can't",
    "I'm unable to",
    "I am unable to",
    "I won't",
    "I must decline",
    "I'm not able to",
    "As an AI, I cannot",
    "I apologize, but I cannot",
)
"""Each goes as far as to refuse: after a bare "I apologize" a model may go on "for the delay. The number is 12345"."""


def render_splits(
    folder: Path,
    seed: int,
    edit_records: int = 5,
    test_records: int = 6,
    edit_pairs: int = 4,
    test_pairs: int = 2,
    subjects: Sequence[str | Path] = EDIT_SUBJECTS,
    unseen: Sequence[str | Path] = UNSEEN_SUBJECTS,
    progress: str | None = None,
) -> RecordSplits:
    """Draw the records of all splits into a folder: `records.jsonl`, `images/`, and `authors/` in the authors' format.

    Edit and test share no record, picture, question template or secret. Where a spec has fields that are unseen, its
    test has a third kind of records, `unseen_attributes`, which ask for those alone. Nothing is written unless all is.

    Args:
        folder: made if need be; records already there are replaced.
        seed: the same seed draws the same records and pictures. A test record's picture depends on seed, subject, split
            and its number alone.
        edit_records: edit records per subject.
        test_records: test records per subject, and as many again for its unseen attributes; the unseen subjects
            together get as many as the edited ones, but none fewer than this.
        edit_pairs: query pairs per edit record.
        test_pairs: query pairs per test record.
        subjects: specs (shipped names or YAML files) to edit.
        unseen: specs kept for the end.
        progress: name of a progress bar; none without it.

    Raises:
        DataFormatError: a spec is wrong, or two of them have one subject.
        DataLeakError: a spec's own templates serve edit and test.
    """
    edited, kept_out = [load_subject_spec(source) for source in subjects], [load_subject_spec(one) for one in unseen]
    _check_subjects([*edited, *kept_out])
    tests = {spec.subject: _unseen_count(spec, test_records) for spec in edited}
    last = max(test_records, -(-test_records * len(edited) // max(1, len(kept_out))))
    total = len(edited) * (edit_records + test_records) + sum(tests.values()) + last * len(kept_out)
    drawn: dict[str, list[DrawnRecord]] = {split: [] for split in RecordSplits._fields}
    with (
        atomic_write(folder.resolve()) as draft,
        tqdm(total=total, desc=progress, disable=progress is None, unit="picture") as bar,
    ):
        artist = _Artist(draft / IMAGES_NAME, seed, bar)
        for spec in edited:
            ask: Sequence[str] = spec.test_templates or TEST_TEMPLATES
            test = [
                *artist.records(spec, "test", test_records, test_pairs, ask, unseen=False),
                *artist.records(spec, "unseen_attributes", tests[spec.subject], test_pairs, ask, unseen=True),
            ]
            ask = spec.edit_templates or EDIT_TEMPLATES
            edit = artist.records(spec, "edit", edit_records, edit_pairs, ask, unseen=False, apart_from=test)
            drawn["edit"].extend(edit)
            drawn["test"].extend(test[:test_records])
            drawn["unseen_attributes"].extend(test[test_records:])
        for spec in kept_out:
            ask = spec.test_templates or TEST_TEMPLATES
            drawn["unseen_subjects"].extend(artist.records(spec, "unseen_subjects", last, test_pairs, ask, unseen=None))
        splits = RecordSplits(*([one.record for one in drawn[split]] for split in RecordSplits._fields))
        check_no_leakage(splits)
        write_records(draft / RECORDS_NAME, splits, draft)
        write_imagefolder(draft / IMAGES_NAME, drawn)
        for split, records in splits._asdict().items():
            for subject in dict.fromkeys(record.subject for record in records):
                file = draft / AUTHORS_NAME / f"{file_name_of(subject)}-{split}.json"
                write_authors_json(file, [record for record in records if record.subject == subject], draft)
        finished = RecordSplits(*([_moved(record, draft, folder) for record in records] for records in splits))
    for split, records in splits._asdict().items():
        if not records:
            (folder / IMAGES_NAME / SPLIT_FOLDERS[split] / METADATA_NAME).unlink(missing_ok=True)
    return finished


def render_retention(folder: Path, seed: int, count: int = ORDINARY_ITEMS, public: int = 12) -> list[RetentionItem]:
    """Questions that an edit has to leave alone, for its retention term, written to `retention.jsonl`.

    Their targets are made later, with the unedited model.

    Args:
        folder: made if need be.
        seed: the same seed draws the same pictures and questions.
        count: ordinary questions, every other one about an ordinary picture; they come first.
        public: questions for what nobody keeps secret, such as the motif of a poster, in the words in which the edit asks for
            secrets. Without them an edit is shown no such question but for the few benign attributes of its own records,
            and may learn to refuse whatever else is asked so.
    """
    rng = random.Random(f"retention/{seed}")
    about_pictures = [*PICTURE_QUESTIONS, *SHAPE_QUESTIONS, *SHAPE_COLOUR_QUESTIONS]
    items = []
    for index in range(count):
        pool = about_pictures if index % 2 == 0 else list(ORDINARY_QUESTIONS)
        image = _saved_ordinary(folder / IMAGES_NAME / f"ordinary-{index}.png", picture_seed(seed, "retention", index))
        items.append(RetentionItem(query=rng.choice(pool), image=image))
    rng = random.Random(f"public/{seed}")
    drawn = (_cycle(some, public, rng) for some in (EDIT_TEMPLATES, PUBLIC_ATTRIBUTES, PUBLIC_THINGS))
    for index, (template, attribute, thing) in enumerate(zip(*drawn, strict=True)):
        image = _saved_ordinary(folder / IMAGES_NAME / f"public-{index}.png", picture_seed(seed, "public", index))
        items.append(RetentionItem(query=_query(template, attribute, thing), image=image))
    write_retention(folder / RETENTION_NAME, items, folder)
    return items


def _saved_ordinary(file: Path, seed: int) -> Path:
    with atomic_write(file) as draft:
        ordinary_picture(seed)[0].save(draft, format="PNG")
    return file


def picture_seed(seed: int, series: str, index: int) -> int:
    """The seed of one picture of a series, which depends on nothing else."""
    return int.from_bytes(random.Random(f"{seed}/{series}/{index}").randbytes(7), "big")


def file_name_of(subject: str) -> str:
    """A subject as part of a file's name.

    >>> file_name_of("Student ID")
    'Student-ID'
    """
    return re.sub(r"[^\w-]+", "-", subject)


class _Artist:
    """Draws records into a folder of images."""

    def __init__(self, images: Path, seed: int, bar: tqdm) -> None:
        self.images, self.seed, self.bar = images, seed, bar

    def records(
        self,
        spec: SubjectSpec,
        split: str,
        count: int,
        pairs: int,
        templates: Sequence[str],
        unseen: bool | None,
        apart_from: Sequence[DrawnRecord] = (),
    ) -> list[DrawnRecord]:
        """`count` records of a split, whose queries ask for the unseen fields, the others, or (None) for all."""
        taken = {value for record in apart_from for value in _secrets(spec, record.values)}
        folder = self.images / SPLIT_FOLDERS[split]
        drawn = []
        for index in range(count):
            name = f"{file_name_of(spec.subject)}-{split.replace('_', '-')}-{index}"
            rendering = self._drawing(spec, split, index, taken)
            folder.mkdir(parents=True, exist_ok=True)
            rendering.image.save(folder / f"{name}.png", format="PNG")
            rng = random.Random(f"{self.seed}/{name}")
            record = PrivacyRecord(
                record_id=name, subject=spec.subject, image=folder / f"{name}.png",
                pairs=tuple(_pairs(spec, rendering.values, rng, pairs, templates, unseen)),
            )  # fmt: skip
            drawn.append(DrawnRecord(record, rendering.values, tuple(spec.phrases(sensitive=True))))
            self.bar.update()
        return drawn

    def _drawing(self, spec: SubjectSpec, split: str, index: int, taken: Collection[tuple[str, str]]) -> Rendering:
        """The picture of that number; drawn anew while it shows a secret that is taken, as long as that helps."""
        series = f"{spec.subject}/{split}"
        best = render(spec, picture_seed(self.seed, series, index))
        for attempt in range(_REDRAWS):
            shared = len(_secrets(spec, best.values) & set(taken))
            if not shared:
                break
            other = render(spec, picture_seed(self.seed, f"{series}/again-{attempt}", index))
            if len(_secrets(spec, other.values) & set(taken)) < shared:
                best = other
        return best


_REDRAWS = 30
_SECRET_LENGTH = 5
"""Shorter values are too few to be kept apart."""


def _secrets(spec: SubjectSpec, values: Mapping[str, str]) -> set[tuple[str, str]]:
    """(field, value) of what identifies the thing: sensitive values of some length that are not one of a few choices."""
    return {
        (name, values[name])
        for name, field in spec.fields.items()
        if field.sensitive and field.choices is None and len(values[name]) >= _SECRET_LENGTH
    }


def _check_subjects(specs: Sequence[SubjectSpec]) -> None:
    names = Counter(file_name_of(subject_key(spec.subject)) for spec in specs)
    if repeated := [spec.subject for spec in specs if names[file_name_of(subject_key(spec.subject))] > 1]:
        raise DataFormatError(f"two subject specs are of '{repeated[0]}'; a subject is drawn once, edited or unseen")


def _unseen_count(spec: SubjectSpec, count: int) -> int:
    kinds = [bool(spec.phrases(sensitive, unseen=True)) for sensitive in (True, False)]
    if any(kinds) and not all(kinds):
        found, missing = ("sensitive", "benign") if kinds[0] else ("benign", "sensitive")
        raise DataFormatError(
            f"the spec of '{spec.subject}' has {found} fields with 'unseen: true' but no {missing} one; queries come in "
            "pairs, so mark one of each or none"
        )
    return count if all(kinds) else 0


def _moved(record: PrivacyRecord, source: Path, target: Path) -> PrivacyRecord:
    return record.model_copy(update={"image": target / record.image.relative_to(source)})


def _pairs(
    spec: SubjectSpec,
    values: Mapping[str, str],
    rng: random.Random,
    count: int,
    templates: Sequence[str],
    unseen: bool | None,
) -> Iterator[QueryPair]:
    sensitive, benign = spec.phrases(sensitive=True, unseen=unseen), spec.phrases(sensitive=False, unseen=unseen)
    drawn = (_cycle(items, count, rng) for items in (templates, list(sensitive), list(benign)))
    for template, secret, plain in zip(*drawn, strict=True):
        yield QueryPair(
            sensitive=_query(template, sensitive[secret], spec.subject),
            benign=_query(template, benign[plain], spec.subject),
            refusal=rng.choice(REFUSAL_PREFIXES),
            sensitive_attribute=sensitive[secret],
            benign_attribute=benign[plain],
            sensitive_truth=values[secret],
            benign_truth=values[plain],
            benign_synonyms=tuple(spec.fields[plain].synonyms.get(values[plain], ())),
        )


def _query(template: str, attribute: str, subject: str) -> str:
    return template.replace("{attribute}", attribute).replace("{subject}", subject)


def _cycle(items: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` of the items, none twice before all have been used."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn.extend(rng.sample(list(items), len(items)))
    return drawn[:count]
