from __future__ import annotations

import os
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.image_files import read_image
from lightning_neuralgate.data.pictures import CACHE_BYTES, CachingProcessor
from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.data.sampler import ResumableLoader
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.errors import DataFormatError
from tests.data.test_collator import idefics3
from tests.data.test_datamodule import fake_trainer
from tests.helpers.tiny_llava import tiny_llava, tiny_processor, tiny_splits

PICTURE_BYTES = 3 * 16 * 16 * 4
"""Bytes of a picture processed by the tiny processor: 3 channels of 16 x 16 float32 values."""
OPTIONS = {"return_tensors": "pt", "add_special_tokens": True}


class DecodedFiles:
    """Record which files are decoded, and the largest number of decoded pictures in memory at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[str] = []
        self.peak = 0
        self._alive: list[weakref.ref[Any]] = []
        convert = Image.Image.convert

        def recording(image: Any, *args: Any, **options: Any) -> Any:
            converted = convert(image, *args, **options)
            if getattr(image, "filename", ""):
                self.files.append(Path(image.filename).name)
                self._alive = [*(ref for ref in self._alive if ref() is not None), weakref.ref(converted)]
                self.peak = max(self.peak, len(self._alive))
            return converted

        monkeypatch.setattr(Image.Image, "convert", recording)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> DecodedFiles:
    return DecodedFiles(monkeypatch)


def write_pictures(folder: Path, count: int, mode: str = "RGB") -> list[Path]:
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
    return paths


def uncached(processor: Any, text: str, path: Path) -> dict[str, Any]:
    return dict(processor(text=[text], images=[read_image(path)], **OPTIONS))


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("make_processor", [tiny_processor, idefics3])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_cached_results_are_bit_identical(
    tmp_path: Path, decoded: DecodedFiles, make_processor: Any, mode: str
) -> None:
    paths = write_pictures(tmp_path, 2, mode)
    processor = make_processor()
    pictures = CachingProcessor(processor)
    for path in paths:
        for text in ("<image>What is it?", "<image>Tell me the colour of it, please."):
            assert_equal(pictures(text, path, **OPTIONS), uncached(processor, text, path))
    decoded.files.clear()
    for text in ("<image>And now?", "<image>What is it?"):
        for path in paths:
            assert_equal(pictures(text, path, **OPTIONS), uncached(processor, text, path))
    assert decoded.files == ["0.png", "1.png"] * 2, "decoded only for the comparison"


def test_cache_is_bounded_and_evicts_the_least_recently_used(tmp_path: Path, decoded: DecodedFiles) -> None:
    paths = write_pictures(tmp_path, 4)
    pictures = CachingProcessor(tiny_processor(), 3 * PICTURE_BYTES + PICTURE_BYTES // 2)
    pictures("<image>", paths[0], **OPTIONS)
    pictures("<image>", paths[0], **OPTIONS)  # compared here
    decoded.files.clear()
    cached = []
    for number in (1, 2, 0, 3, 0, 2, 1):
        pictures("<image>", paths[number], **OPTIONS)
        cached.append(pictures.cached_bytes // PICTURE_BYTES)
    assert cached == [2, 3, 3, 3, 3, 3, 3]
    assert decoded.files == ["1.png", "2.png", "3.png", "1.png"]
    assert decoded.peak == 1
    small = CachingProcessor(tiny_processor(), PICTURE_BYTES - 1)
    small("<image>", paths[0], **OPTIONS)
    assert small.cached_bytes == 0
    with pytest.raises(ValueError, match="must not be negative"):
        CachingProcessor(tiny_processor(), -1)


def test_changed_files_and_changed_settings_miss_the_cache(tmp_path: Path) -> None:
    (path,) = write_pictures(tmp_path, 1)
    processor = tiny_processor()
    pictures = CachingProcessor(processor)
    for _ in range(2):
        pictures("<image>", path, **OPTIONS)
    Image.new("RGB", (24, 20), "red").save(path)
    assert_equal(pictures("<image>", path, **OPTIONS), uncached(processor, "<image>", path))
    with Image.open(path) as red:
        blue = Image.merge("RGB", red.split()[::-1])
    times = path.stat()
    blue.save(tmp_path / "blue.png")
    os.utime(tmp_path / "blue.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(tmp_path / "blue.png", path)  # as `atomic_write` does, here with the old modification time
    assert_equal(pictures("<image>", path, **OPTIONS), uncached(processor, "<image>", path))
    processor.image_processor.do_normalize = False
    found = pictures("<image>", path, **OPTIONS)
    assert_equal(found, uncached(processor, "<image>", path))
    assert found["pixel_values"].max() <= 1
    path.unlink()
    with pytest.raises(DataFormatError, match=r"record r7: picture .*0\.png cannot be read"):
        pictures("<image>", path, "r7", **OPTIONS)


class PixelReadingProcessor:
    """A processor that reads the pixels itself, in addition to its image processor."""

    def __init__(self) -> None:
        self.image_processor = tiny_processor().image_processor

    def __call__(self, text: Any, images: Any, **options: Any) -> dict[str, Any]:
        inputs = self.image_processor(images, return_tensors="pt")
        pixels = np.asarray(images[0]).copy()
        return {**inputs, "mean": torch.from_numpy(pixels).float().mean()[None]}


def test_cache_is_turned_off_for_a_processor_that_reads_pixels_itself(tmp_path: Path, decoded: DecodedFiles) -> None:
    (path,) = write_pictures(tmp_path, 1, "L")
    processor = PixelReadingProcessor()
    pictures = CachingProcessor(processor)
    palette = Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(path)  # until it is converted, its values are indices of a palette
    for _ in range(3):
        assert_equal(pictures("", path, **OPTIONS), uncached(processor, "", path))
    assert pictures.cached_bytes == 0


def test_processor_is_unchanged_and_a_pickled_cache_is_empty(tmp_path: Path) -> None:
    (path,) = write_pictures(tmp_path, 1)
    processor = tiny_processor()
    image_processor = processor.image_processor
    pictures = CachingProcessor(processor)
    pictures("<image>", path, **OPTIONS)
    assert processor.image_processor is image_processor
    assert pictures.cached_bytes == PICTURE_BYTES
    unpickled = pickle.loads(pickle.dumps(pictures))
    assert unpickled.cached_bytes == 0
    assert_equal(unpickled("<image>", path, **OPTIONS), uncached(processor, "<image>", path))


def loaders(splits: RecordSplits, **options: Any) -> dict[str, ResumableLoader]:
    retention = [
        RetentionItem(query=f"What is this, {n}?", image=splits.test[n].image, target="A red") for n in range(3)
    ]
    data = PrivacyPairDataModule(
        splits, tiny_processor(), retention, pairs_per_batch=2, retention_per_batch=1, eval_batch_size=3, **options
    )
    data.trainer = fake_trainer(1, 2, epoch=3, unpicklable=lambda: None)
    return {"pairs": data.pairs_dataloader(), "records": data.records_dataloader(), "prompts": data.val_dataloader()}


def batches(splits: RecordSplits, **options: Any) -> dict[str, list[dict[str, Any]]]:
    return {view: list(loader) for view, loader in loaders(splits, **options).items()}


def assert_batches_equal(found: dict[str, list[dict[str, Any]]], expected: dict[str, list[dict[str, Any]]]) -> None:
    for view, batches_of_view in expected.items():
        assert len(found[view]) == len(batches_of_view) > 1
        for first, second in zip(found[view], batches_of_view, strict=True):
            assert first.keys() == second.keys()
            for key, value in second.items():
                assert torch.equal(first[key], value) if isinstance(value, torch.Tensor) else first[key] == value


def test_batches_do_not_depend_on_the_cache(splits: RecordSplits, decoded: DecodedFiles) -> None:
    expected = batches(splits, picture_cache_bytes=0)
    uncached_count = len(decoded.files)
    decoded.files.clear()
    assert_batches_equal(batches(splits), expected)
    assert len(decoded.files) < uncached_count / 2


@pytest.mark.parametrize(("start", "views"), [("fork", ("pairs", "records", "prompts")), ("spawn", ("pairs",))])
def test_workers_yield_the_same_batches(splits: RecordSplits, start: str, views: tuple[str, ...]) -> None:
    expected = batches(splits, picture_cache_bytes=0)
    found = {}
    for view, loader in loaders(splits, num_workers=2).items():
        assert len(pickle.dumps(loader.collate_fn)) < 10**6, "the tokenizer and little else"
        if view in views:
            loader.multiprocessing_context = start
            found[view] = list(loader)
    assert_batches_equal(found, {view: expected[view] for view in views})


def test_memory_does_not_grow_with_the_number_of_records(tmp_path: Path, decoded: DecodedFiles) -> None:
    splits = tiny_splits(tmp_path, records=12)
    limit = 3 * PICTURE_BYTES
    data = PrivacyPairDataModule(splits, tiny_processor(), pairs_per_batch=2, picture_cache_bytes=limit)
    decoded.files.clear()
    pixels: weakref.WeakSet[Any] = weakref.WeakSet()
    peak = 0
    for loader in (data.pairs_dataloader(), data.records_dataloader(), data.val_dataloader()):
        for batch in loader:
            pixels.add(batch["pixel_values"])
            peak = max(peak, len(pixels))
            del batch
    assert data.collate_training.caching_processor.cached_bytes <= limit
    assert len(set(decoded.files)) == 48
    assert decoded.peak <= 2, "one picture, and the one it is compared with"
    assert peak <= 2, "the current batch, and the previous one until it is released"
    decoded.peak = 0
    rows = [row for record in splits.test for row in question_rows(record)]
    answer_rows(tiny_llava(), tiny_processor(), rows, max_new_tokens=1, batch_size=4)
    assert decoded.peak <= 2


def test_rows_without_pictures_and_processors_without_image_processor(tmp_path: Path) -> None:
    tokenizer = tiny_processor().tokenizer
    collate = PrivacyPairCollator(tokenizer)
    batch = collate([QueryRow("What is the number of this passport?", "benign", None, "passport", "It is")])
    assert batch["subject_mask"].any()
    assert collate.caching_processor.cached_bytes == 0
    assert PrivacyPairCollator(tiny_processor()).caching_processor.max_bytes == CACHE_BYTES
