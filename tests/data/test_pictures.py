"""Processed pictures are kept within a bound, and nothing tells that they are."""

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

from lightning_neuralgate.data import pictures as pictures_module
from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.pictures import PictureProcessor, read_image
from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.data.sampler import ResumableLoader
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.errors import DataFormatError
from tests.data.test_collator import idefics3
from tests.helpers.tiny_llava import tiny_llava, tiny_processor, tiny_splits

ONE = 3 * 16 * 16 * 4
"""Bytes of a picture as the tiny processor makes it: three colours, 16 by 16, four bytes each."""
OPTIONS = {"return_tensors": "pt", "add_special_tokens": True}


class Decoded:
    """Which files are decoded, and how many pictures are there at most at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[str] = []
        self.most = 0
        self._alive: list[weakref.ref[Any]] = []
        convert = Image.Image.convert

        def counted(image: Any, *args: Any, **options: Any) -> Any:
            made = convert(image, *args, **options)
            if getattr(image, "filename", ""):
                self.files.append(Path(image.filename).name)
                self._alive = [*(ref for ref in self._alive if ref() is not None), weakref.ref(made)]
                self.most = max(self.most, len(self._alive))
            return made

        monkeypatch.setattr(Image.Image, "convert", counted)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    return Decoded(monkeypatch)


def files(folder: Path, count: int, mode: str = "RGB") -> list[Path]:
    generator = np.random.default_rng(0)
    made = []
    for number in range(count):
        made.append(folder / f"{number}.png")
        pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(made[-1])
    return made


def plain(processor: Any, text: str, path: Path) -> dict[str, Any]:
    return dict(processor(text=[text], images=[read_image(path)], **OPTIONS))


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("make", [tiny_processor, idefics3])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_what_comes_again_is_the_same_to_the_bit(tmp_path: Path, decoded: Decoded, make: Any, mode: str) -> None:
    one, other = files(tmp_path, 2, mode)
    processor = make()
    pictures = PictureProcessor(processor)
    for path in (one, other):
        for text in ("<image>What is it?", "<image>Tell me the colour of it, please."):
            same(pictures(text, path, **OPTIONS), plain(processor, text, path))
    decoded.files.clear()
    for text in ("<image>And now?", "<image>What is it?"):
        for path in (one, other):
            same(pictures(text, path, **OPTIONS), plain(processor, text, path))
    assert decoded.files == ["0.png", "1.png"] * 2, "decoded for the comparison alone"


def test_holds_no_more_than_its_room_and_gives_up_what_was_used_least_recently(
    tmp_path: Path, decoded: Decoded
) -> None:
    paths = files(tmp_path, 4)
    pictures = PictureProcessor(tiny_processor(), 3 * ONE + ONE // 2)
    pictures("<image>", paths[0], **OPTIONS)
    pictures("<image>", paths[0], **OPTIONS)  # compared here
    decoded.files.clear()
    held = []
    for number in (1, 2, 0, 3, 0, 2, 1):
        pictures("<image>", paths[number], **OPTIONS)
        held.append(pictures.held // ONE)
    assert held == [2, 3, 3, 3, 3, 3, 3]
    assert decoded.files == ["1.png", "2.png", "3.png", "1.png"]
    assert decoded.most == 1
    small = PictureProcessor(tiny_processor(), ONE - 1)
    small("<image>", paths[0], **OPTIONS)
    assert small.held == 0
    with pytest.raises(ValueError, match="must not be negative"):
        PictureProcessor(tiny_processor(), -1)


def test_other_pixels_and_other_settings_are_something_else(tmp_path: Path) -> None:
    (path,) = files(tmp_path, 1)
    processor = tiny_processor()
    pictures = PictureProcessor(processor)
    for _ in range(2):
        pictures("<image>", path, **OPTIONS)
    Image.new("RGB", (24, 20), "red").save(path)
    same(pictures("<image>", path, **OPTIONS), plain(processor, "<image>", path))
    with Image.open(path) as red:
        blue = Image.merge("RGB", red.split()[::-1])
    times = path.stat()
    blue.save(tmp_path / "blue.png")
    os.utime(tmp_path / "blue.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(tmp_path / "blue.png", path)  # as `atomic_write` does, here with the time of what was there
    same(pictures("<image>", path, **OPTIONS), plain(processor, "<image>", path))
    processor.image_processor.do_normalize = False
    found = pictures("<image>", path, **OPTIONS)
    same(found, plain(processor, "<image>", path))
    assert found["pixel_values"].max() <= 1
    path.unlink()
    with pytest.raises(DataFormatError, match=r"record r7: picture .*0\.png cannot be read"):
        pictures("<image>", path, "r7", **OPTIONS)


class LooksItself:
    """A processor that adds to what its image processor makes what it sees in the pixels itself."""

    def __init__(self) -> None:
        self.image_processor = tiny_processor().image_processor

    def __call__(self, text: Any, images: Any, **options: Any) -> dict[str, Any]:
        made = self.image_processor(images, return_tensors="pt")
        seen = np.asarray(images[0]).copy()
        return {**made, "seen": torch.from_numpy(seen).float().mean()[None]}


def test_a_processor_that_looks_at_pixels_itself_sees_them(tmp_path: Path, decoded: Decoded) -> None:
    (path,) = files(tmp_path, 1, "L")
    processor = LooksItself()
    pictures = PictureProcessor(processor)
    palette = Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(path)  # its numbers are places in a palette until it is converted
    for _ in range(3):
        same(pictures("", path, **OPTIONS), plain(processor, "", path))
    assert pictures.held == 0


def test_the_processor_is_left_as_it_was_and_a_copy_elsewhere_begins_with_nothing(tmp_path: Path) -> None:
    (path,) = files(tmp_path, 1)
    processor = tiny_processor()
    inner = processor.image_processor
    pictures = PictureProcessor(processor)
    pictures("<image>", path, **OPTIONS)
    assert processor.image_processor is inner
    assert pictures.held == ONE
    other = pickle.loads(pickle.dumps(pictures))
    assert other.held == 0
    same(other("<image>", path, **OPTIONS), plain(processor, "<image>", path))


class Training:
    """What a data module knows of a Trainer; no other process could be sent it."""

    current_epoch, global_rank, world_size = 3, 1, 2
    lightning_module: Any = None

    def __init__(self) -> None:
        self.model = lambda: None


def loaders(splits: RecordSplits, **options: Any) -> dict[str, ResumableLoader]:
    retention = [
        RetentionItem(query=f"What is this, {n}?", image=splits.test[n].image, target="A red") for n in range(3)
    ]
    data = PrivacyPairDataModule(
        splits, tiny_processor(), retention, pairs_per_batch=2, retention_per_batch=1, eval_batch_size=3, **options
    )
    data.trainer = Training()  # type: ignore[assignment]
    return {"pairs": data.pairs_dataloader(), "records": data.records_dataloader(), "prompts": data.val_dataloader()}


def batches(splits: RecordSplits, **options: Any) -> dict[str, list[dict[str, Any]]]:
    return {view: list(loader) for view, loader in loaders(splits, **options).items()}


def equal(found: dict[str, list[dict[str, Any]]], expected: dict[str, list[dict[str, Any]]]) -> None:
    for view, some in expected.items():
        assert len(found[view]) == len(some) > 1
        for one, other in zip(found[view], some, strict=True):
            assert one.keys() == other.keys()
            for key, value in other.items():
                assert torch.equal(one[key], value) if isinstance(value, torch.Tensor) else one[key] == value


def test_batches_are_the_same_without(splits: RecordSplits, decoded: Decoded) -> None:
    expected = batches(splits, picture_room=0)
    often = len(decoded.files)
    decoded.files.clear()
    equal(batches(splits), expected)
    assert len(decoded.files) < often / 2


@pytest.mark.parametrize(("start", "views"), [("fork", ("pairs", "records", "prompts")), ("spawn", ("pairs",))])
def test_workers_make_the_same_batches(splits: RecordSplits, start: str, views: tuple[str, ...]) -> None:
    expected = batches(splits, picture_room=0)
    found = {}
    for view, loader in loaders(splits, num_workers=2).items():
        assert len(pickle.dumps(loader.collate_fn)) < 10**6, "the tokenizer and little else, whatever the start"
        if view in views:
            loader.multiprocessing_context = start
            found[view] = list(loader)
    equal(found, {view: expected[view] for view in views})


def test_any_number_of_records_takes_the_memory_of_a_few(tmp_path: Path, decoded: Decoded) -> None:
    splits = tiny_splits(tmp_path, records=12)
    room = 3 * ONE
    data = PrivacyPairDataModule(splits, tiny_processor(), pairs_per_batch=2, picture_room=room)
    decoded.files.clear()
    pixels: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0
    for loader in (data.pairs_dataloader(), data.records_dataloader(), data.val_dataloader()):
        for batch in loader:
            pixels.add(batch["pixel_values"])
            most = max(most, len(pixels))
            del batch
    assert data.collate_training.pictures.held <= room
    assert len(set(decoded.files)) == 48
    assert decoded.most <= 2, "one picture, and one it is compared with"
    assert most <= 2, "the batch at hand, and the one before it until it is given up"
    decoded.most = 0
    rows = [row for record in splits.test for row in question_rows(record)]
    answer_rows(tiny_llava(), tiny_processor(), rows, max_new_tokens=1, batch_size=4)
    assert decoded.most <= 2


def test_rows_without_pictures_and_processors_without_image_processors(tmp_path: Path) -> None:
    tokenizer = tiny_processor().tokenizer
    collate = PrivacyPairCollator(tokenizer)
    batch = collate([QueryRow("What is the number of this passport?", "benign", None, "passport", "It is")])
    assert batch["subject_mask"].any()
    assert collate.pictures.held == 0
    assert PrivacyPairCollator(tiny_processor()).pictures.room == pictures_module.ROOM
