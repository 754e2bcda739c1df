from __future__ import annotations

import json
from typing import Any

import pytest

from lightning_neuralgate.data import targets
from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.data.targets import answer_rows, fill_targets, first_words
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import cache_folder
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import train, without_targets


def test_targets_are_the_first_words_of_the_models_answers(splits: RecordSplits) -> None:
    model, processor = tiny_llava(), tiny_processor()
    incomplete = without_targets(splits)
    items = [RetentionItem(query="What do bees make?"), RetentionItem(query="Kept?", target="Yes, as given")]
    edit, retention = fill_targets(incomplete.edit, items, model, processor)
    row = QueryRow(edit[1].pairs[1].benign, "benign", edit[1].image, edit[1].subject)
    (answer,) = answer_rows(model, processor, [row], max_new_tokens=24)
    assert edit[1].pairs[1].benign_target == first_words(answer, 5)
    assert len(edit[1].pairs[1].benign_target.split()) <= 5
    assert retention[1].target == "Yes, as given"
    assert retention[0].target


def test_targets_are_generated_once_per_model_and_data(splits: RecordSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = targets.answer_rows

    def counting(model: Any, processor: Any, rows: Any, *args: Any, **kwargs: Any) -> list[str]:
        calls.append(len(rows))
        return original(model, processor, rows, *args, **kwargs)

    monkeypatch.setattr(targets, "answer_rows", counting)
    incomplete, processor = without_targets(splits), tiny_processor()
    first, _ = fill_targets(incomplete.edit, [], tiny_llava(), processor)
    again, _ = fill_targets(incomplete.edit, [], tiny_llava(), processor)
    assert first == again
    assert calls == [8], "the second call reads the cache"
    fill_targets(incomplete.edit, [], tiny_llava(seed=1), processor)
    fill_targets(incomplete.edit[1:], [], tiny_llava(), processor)
    assert calls == [8, 8, 6], "another model and other data have other keys"
    fill_targets(first, [], tiny_llava(), processor)
    assert len(calls) == 3, "nothing is generated if all targets are present"
    files = list((cache_folder() / "targets").iterdir())
    assert len(files) == 3
    assert len(json.loads(files[0].read_text())["answers"]) in (6, 8)


@pytest.mark.parametrize("damage", ["{", "[]", "7", '{"answers": ["a"], "checksum": "0"}', "[" * 100_000, "one letter"])
def test_a_damaged_cache_is_noticed_and_made_anew(splits: RecordSplits, damage: str) -> None:
    incomplete, processor = without_targets(splits), tiny_processor()
    expected, _ = fill_targets(incomplete.edit, [], tiny_llava(), processor)
    (file,) = (cache_folder() / "targets").iterdir()
    content = json.loads(file.read_text())
    content["answers"][3] += "x"
    file.write_text(json.dumps(content) if damage == "one letter" else damage)
    with pytest.warns(UserWarning, match=rf"{file.name} is damaged, so its answers are generated again"):
        assert fill_targets(incomplete.edit, [], tiny_llava(), processor)[0] == expected
    assert fill_targets(incomplete.edit, [], tiny_llava(), processor)[0] == expected


def test_missing_targets_are_generated_when_fitting_starts(splits: RecordSplits) -> None:
    model, processor = tiny_llava(), tiny_processor()
    data = PrivacyPairDataModule(without_targets(splits), processor)
    train(PrivacyEditModule(model, [1]), data)
    assert all(pair.benign_target for record in data.splits.edit for pair in record.pairs)


def test_answers_are_in_order_and_do_not_depend_on_the_batch(splits: RecordSplits) -> None:
    model, processor = tiny_llava(), tiny_processor()
    record = splits.test[0]
    rows = [
        QueryRow(query, "benign", record.image)
        for query in ("Is it?", "What is the long and winding number of this receipt here?", "Why?", "A longer one?")
    ]
    batched = answer_rows(model, processor, rows, max_new_tokens=6, batch_size=3)
    single = [answer_rows(model, processor, [row], max_new_tokens=6)[0] for row in rows]
    assert batched == single
    assert len(set(single)) > 1


def test_an_empty_answer_names_the_retention_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_cached_answers", lambda model, processor, rows, batch_size: [""] * len(rows))
    with pytest.raises(DataFormatError, match=r"^retention question: .* answer to 'What is it\?' is empty"):
        fill_targets([], [RetentionItem(query="What is it?")], model=None, processor=None)
