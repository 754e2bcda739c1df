from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.data.rendering.imagefolder import METADATA_NAME
from lightning_neuralgate.data.rendering.spec import load_subject_spec
from lightning_neuralgate.data.retention import render_retention

datasets = pytest.importorskip("datasets")


def test_datasets_loads_pictures_splits_and_truths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data, cache = tmp_path / "test" / "data", str(tmp_path / "cache")
    splits = render_splits(data, 0, 1, 2, 3, 2, ["passport", "drone"], ["receipt"], validation_records=1)
    render_retention(data, 0, "open", 4)
    (data / "contact-sheet-test.png").write_bytes(splits.edit[0].image.read_bytes())

    derived = datasets.load_dataset("imagefolder", data_dir=str(data), cache_dir=cache)
    assert {name: len(rows) for name, rows in derived.items()} == {"train": 2, "validation": 2, "test": 12}
    assert set(derived["train"]["split"]) == {"edit"}
    assert set(derived["test"]["split"]) == {"test", "unseen_attributes", "unseen_subjects"}

    declared = datasets.load_dataset(str(data / "images"), cache_dir=cache)
    assert {name: len(rows) for name, rows in declared.items()} == {
        name: len(records) for name, records in splits._asdict().items()
    }
    for split, records in splits._asdict().items():
        for row, record in zip(declared[split], records, strict=True):
            spec = load_subject_spec(record.subject)
            truth = json.loads(row["truth"])
            assert (row["record_id"], row["subject"], row["split"]) == (record.record_id, record.subject, split)
            assert row["image"].size == (288, 288)
            assert set(truth) == set(spec.fields)
            assert row["sensitive_fields"] == list(spec.phrases(sensitive=True))
            for loaded, pair in zip(row["pairs"], record.pairs, strict=True):
                assert (loaded["sensitive"], loaded["benign"], loaded["refusal"]) == (
                    pair.sensitive, pair.benign, pair.refusal,
                )  # fmt: skip
                assert loaded["benign_truths"] == [pair.benign_truth, *pair.benign_synonyms]
                assert loaded["sensitive_truth"] == pair.sensitive_truth
                assert {loaded["sensitive_truth"], loaded["benign_truths"][0]} <= set(truth.values())


def test_rendering_again_removes_the_metadata_of_a_dropped_split(tmp_path: Path) -> None:
    render_splits(tmp_path, 0, 1, 1, 1, 1, ["passport"], ["drone"])
    stale = tmp_path / "images" / "test-unseen-subjects" / METADATA_NAME
    assert stale.is_file()
    render_splits(tmp_path, 0, 1, 1, 1, 1, ["passport"], [])
    assert not stale.exists()
    assert "unseen_subjects" not in (tmp_path / "images" / "README.md").read_text()
