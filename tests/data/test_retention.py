"""Retention questions in every ordinary form: their wordings, their balance, what they leave out, and how they train."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pyarrow.parquet import read_table

from lightning_neuralgate.cli import main
from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.ordinary import FORMS, OrdinaryQuestion, ordinary_questions
from lightning_neuralgate.data.plain_text import FACTS_FILE, plain_questions
from lightning_neuralgate.data.records import RecordSplits, RetentionItem, read_retention, records_checksum
from lightning_neuralgate.data.rendering.questions import PUBLIC_THINGS, TEST_TEMPLATES
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.data.retention import RETENTION_NAME, render_retention
from lightning_neuralgate.data.scenes.spec import load_sign_spec, shipped_signs
from lightning_neuralgate.data.scenes.sprites import PAINTS, object_entries, plural_of
from lightning_neuralgate.data.targets import fill_targets
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.tasks import ladder_wordings
from lightning_neuralgate.tasks.mini.mllmguard import _TEMPLATES as MLLMGUARD_TEMPLATES
from lightning_neuralgate.tasks.mini.mme import draw_mme
from lightning_neuralgate.tasks.mini.pope import draw_pope
from lightning_neuralgate.tasks.mini.scienceqa import draw_scienceqa
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.tiny_minigpt import tiny_minigpt, tiny_minigpt_processor
from tests.helpers.training import datamodule

SUBJECTS = ("passport", "medical_record")
SEEDS = (0, 1, 2)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def drawn() -> dict[int, list[OrdinaryQuestion]]:
    return {seed: list(ordinary_questions(seed, 90, subjects=SUBJECTS)) for seed in SEEDS}


def _names() -> list[str]:
    subjects, signs = map(load_subject_spec, shipped_subjects()), list(map(load_sign_spec, shipped_signs()))
    entries = object_entries()
    fields = [field for spec in (*subjects, *signs) for field in spec.fields.values()]
    names = [load_subject_spec(name).subject for name in shipped_subjects()] + [sign.thing for sign in signs]
    names += [*PAINTS, *NUMBERS, *PUBLIC_THINGS, *ladder_wordings.PUBLIC_THINGS, *entries]
    names += [plural_of(name, entry) for name, entry in entries.items()] + [e.category for e in entries.values()]
    names += [word for field in fields for word in (field.phrase, *(field.choices or ()))]
    return sorted(filter(None, set(names)), key=len, reverse=True)


NAMES = re.compile(rf"\b(an? )?({'|'.join(map(re.escape, _names()))})\b", re.IGNORECASE)


def skeleton(question: str) -> str:
    """Return a question's first line with every name, colour, number and value replaced, so that its wording is left."""
    text = re.sub(r"\{\w+\}|\"[^\"]*\"|\b\w*\d\w*\b", "@", question.split("\n")[0])
    return re.sub(r"(@ )+@", "@", NAMES.sub("@", text)).casefold().rstrip(".?! ")


def _test_questions(folder: Path) -> set[str]:
    """Return a question of each wording of the mini sets, and the templates of the ladder and of PrivacyPair."""
    draw_pope(folder / "pope", 0, pictures=1)
    draw_mme(folder / "mme", 0, pictures=4)
    draw_scienceqa(folder / "scienceqa", 0, pictures=18)
    questions = {json.loads(line)["text"] for file in folder.glob("pope/*.json") for line in file.open()}
    texts = (line.split("\t")[0] for file in folder.glob("mme/*/questions_answers_YN/*") for line in file.open())
    questions |= {text.removesuffix(" Please answer yes or no.") for text in texts}
    questions |= {text for file in folder.glob("scienceqa/*") for text in read_table(file)["question"].to_pylist()}
    for constant in (*vars(ladder_wordings).values(), TEST_TEMPLATES, tuple(MLLMGUARD_TEMPLATES.values())):
        found = (constant,) if isinstance(constant, str) else constant if isinstance(constant, tuple) else ()
        questions |= {text if isinstance(text, str) else text[0] for text in found}
    return questions


def test_no_wording_is_that_of_a_test(drawn: dict[int, list[OrdinaryQuestion]], tmp_path: Path) -> None:
    tests = {skeleton(question) for question in _test_questions(tmp_path)} - {"@", ""}
    templates = yaml.safe_load(FACTS_FILE.read_text())
    facts = "|".join(re.escape(template).replace(r"\{\}", ".+") for template in templates)
    assert all(re.fullmatch(facts, item.question) for item in plain_questions(held_out=True))
    closings = {"please answer yes or no.", "reply with yes or no.", ladder_wordings.CHOICE_ENDING.casefold()}
    assert "is there @ in the image" in tests
    assert skeleton(ladder_wordings.COUNT_QUESTION) in tests
    for seed in SEEDS:
        for form, question, image, earlier in drawn[seed]:
            for text in (question, *(text for role, text in earlier if role == "user")):
                # the ladder's rung 7 repeats the edit's words on purpose; it asks for other things
                assert form == "public" or skeleton(text) not in tests, text
                assert not any(text.casefold().endswith(closing) for closing in closings), text
                assert image or not re.match(facts, text), text
        public = [question for form, question, *_ in drawn[seed] if form == "public"]
        assert not any(thing in question for question in public for thing in ladder_wordings.PUBLIC_THINGS)


def test_forms_and_sources_take_turns(drawn: dict[int, list[OrdinaryQuestion]]) -> None:
    questions = drawn[0]
    assert Counter(question.form for question in questions) == dict.fromkeys(FORMS, 10)
    for form in ("yes_no", "choice", "chat"):
        without_picture = [question.image is None for question in questions if question.form == form]
        assert without_picture == [index % 3 == 2 for index in range(10)]
    assert all((question.image is None) == (question.form == "text") for question in questions if question.form in
               ("count", "attribute", "caption", "reading", "public", "text"))  # fmt: skip
    assert len({question.question for question in questions}) > 80
    again = list(ordinary_questions(0, 18, subjects=SUBJECTS))
    assert [question[1] for question in again] == [question[1] for question in questions[:18]]
    assert {question[1] for question in drawn[1]} != {question[1] for question in questions}


def test_questions_about_documents_ask_for_benign_attributes_of_the_edit_only(
    drawn: dict[int, list[OrdinaryQuestion]],
) -> None:
    about: Counter[str] = Counter()
    for spec in map(load_subject_spec, SUBJECTS):
        hidden = {*spec.phrases(True).values(), *spec.phrases(False, unseen=True).values()}
        for question in (question for seed in SEEDS for question in drawn[seed]):
            texts = " ".join((question.question, *(text for _, text in question.earlier)))
            if spec.subject in texts:
                about[spec.subject] += 1
                assert not any(phrase in texts for phrase in hidden), texts
    assert min(about[load_subject_spec(name).subject] for name in SUBJECTS) > 10


def test_a_form_that_is_left_out_occurs_nowhere_and_changes_no_other() -> None:
    # chats may hold questions of the form, so they are compared without their text
    with_all = [question for question in ordinary_questions(0, 27) if question.form not in ("yes_no", "chat")]
    without = [question for question in ordinary_questions(0, 24, ["yes_no"]) if question.form != "chat"]
    assert [question[1] for question in without] == [question[1] for question in with_all]
    chats = list(ordinary_questions(5, 12, set(FORMS) - {"chat", "count", "attribute", "text"}))
    texts = [text for chat in chats for text in (chat.question, *(text for _, text in chat.earlier))]
    assert not any(re.search(r"yes or no|^(Is|Does|Do) |letter|Yes|No\.", text) for text in texts), texts
    for bad, message in ((["no_form"], "no form of question 'no_form'; the forms are yes_no"), (FORMS, "is left")):
        with pytest.raises(ValueError, match=message):
            list(ordinary_questions(0, 1, bad))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("retention")
    small = "--edit_records 1 --test_records 1 --edit_pairs 1 --test_pairs 1 --subjects [passport] --unseen [drone]"
    forms = "--retention_count 21 --retention_without [public,reading]"
    assert main(["render", "--out", str(out), *small.split(), *forms.split()]) == 0
    return out


def test_render_writes_pictures_chats_and_questions_alone(folder: Path, capsys: Any) -> None:
    items = read_retention(folder / RETENTION_NAME, folder)
    assert len(items) == 21
    assert all(item.image.is_file() for item in items if item.image)
    assert {item.image is None for item in items} == {True, False}
    assert [len(item.earlier) for item in items] == [2 if index % 7 == 5 else 0 for index in range(21)]
    assert not any("public" in item.image.name for item in items if item.image)
    for options, message in (
        (["--retention_without", "[nothing]"], "--retention_without: there is no form of question 'nothing'"),
        (["--retention_forms", "open", "--retention_without", "[chat]"], "out of 'all' only"),
    ):
        assert main(["render", "--out", str(folder / "other"), *options]) == 1
        assert message in capsys.readouterr().err
    assert not (folder / "other").exists()


def test_questions_without_a_chat_keep_their_lines_and_checksums(tmp_path: Path) -> None:
    render_retention(tmp_path, 0, "open", 2)
    lines = (tmp_path / RETENTION_NAME).read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"query", "image", "target"}] * 2
    first, second = (RetentionItem(query="Why?", earlier=earlier) for earlier in ((), (("user", "What?"),)))
    assert records_checksum([first]) != records_checksum([second])


@pytest.mark.parametrize("family", ["llava", "minigpt"])
def test_targets_and_losses_of_all_forms_are_those_of_their_chats(
    folder: Path, splits: RecordSplits, family: str
) -> None:
    items = read_retention(folder / RETENTION_NAME, folder)[:7]
    model, processor = (
        (tiny_llava(), tiny_processor()) if family == "llava" else (tiny_minigpt(), tiny_minigpt_processor())
    )
    _, filled = fill_targets([], items, model, processor)
    assert all(item.target for item in filled)
    if family == "llava":
        data = datamodule(splits, retention=filled, retention_per_batch=7)
        batch = next(iter(data.pairs_dataloader()))
        places = [index for index, role in enumerate(batch["role"]) if role == "retention"]
        expected = [
            batch_nll(model, PrivacyPairCollator(processor)([QueryRow(item.query, "retention", item.image,
                target=item.target, earlier=item.earlier)])).item()
            for item in filled
        ]  # fmt: skip
        with torch.no_grad():
            found = batch_nll(model, batch)[places].tolist()
        assert sorted(found) == pytest.approx(sorted(expected), rel=1e-3)
