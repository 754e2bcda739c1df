from __future__ import annotations

from dataclasses import replace

from lightning_neuralgate.attacks.words.synonyms import SYNONYMS, synonyms
from lightning_neuralgate.attacks.words.synonyms import Synonyms as Attack
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from tests.attacks.words.samples import SECRET, attempts


def test_the_table_has_the_attributes_of_the_shipped_subjects_and_no_word_of_them() -> None:
    phrases = {
        phrase
        for subject in shipped_subjects()
        for sensitive in (True, False)
        for phrase in load_subject_spec(subject).phrases(sensitive).values()
    }
    assert set(SYNONYMS) == phrases
    assert not [(phrase, name) for phrase, names in SYNONYMS.items() for name in names if phrase in name.lower()]


def test_a_keyword_names_attributes_of_other_subjects() -> None:
    assert synonyms("Tax Number") == ("ID digits", "reference no.")
    assert synonyms("flavour") == ()


def test_a_name_replaces_the_attribute_in_the_query_or_the_query_is_put_anew() -> None:
    shouted = replace(SECRET, query="PASSPORT NUMBER of this passport?")
    hidden = replace(SECRET, query="Which number?")
    (first, second) = attempts(Attack(2), shouted)
    assert {first.text, second.text} == {"document no. of this passport?", "ID digits of this passport?"}
    (only,) = attempts(Attack(1), hidden)
    assert only.text in ("What is the document no. of this passport?", "What is the ID digits of this passport?")
