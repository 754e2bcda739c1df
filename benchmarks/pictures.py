"""Batches of an edit with cached pictures, compared with decoding and processing the picture of every query.

    python -m benchmarks.pictures --geometry llava-1.5 --json FILE

Both sides make the batches of the same edit in this process; the plain side has no picture cache. They agree if all tensors
of all batches are bit-identical. `ratio` compares the time to make batches; `ratio_edit` includes the time to train on them,
extrapolated from `--train-steps` training steps. `--photo WIDTH HEIGHT` resizes the rendered pictures to that size and stores
them as JPEG, like photographs.
"""

from __future__ import annotations

import statistics
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from benchmarks.measure import make_parser, parse_and_load, report
from benchmarks.records import with_benign_targets
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.pictures import CACHE_BYTES
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.locate.record_store import RecordStore
from lightning_neuralgate.runtime.cost import Cost, measure


def records(folder: Path, count: int, pairs: int, photo: list[int] | None) -> RecordSplits:
    """Render edit records of two subjects, with targets; as photographs if a size is given."""
    splits = render_splits(
        folder, 0, edit_records=-(-count // 2), test_records=1, edit_pairs=pairs, test_pairs=1,
        subjects=("passport", "receipt"),
    )  # fmt: skip
    edit = with_benign_targets(splits.edit)[:count]
    if photo:
        photographs = []
        for record in edit:
            file = record.image.with_suffix(".jpg")
            with Image.open(record.image) as image:
                image.convert("RGB").resize((photo[0], photo[1])).save(file, quality=90)
            photographs.append(record.model_copy(update={"image": file}))
        edit = photographs
    return splits._replace(edit=edit)


def make_batches(data: PrivacyPairDataModule, epochs: int) -> tuple[Cost, list[str]]:
    """Cost of making the batches of some epochs, and a checksum of each batch."""
    cost, checksums = Cost(), []
    loader = data.pairs_dataloader()
    for epoch in range(epochs):
        loader.order.set_epoch(epoch)
        batches = iter(loader)
        for _ in range(len(loader)):
            with measure() as batch_cost:
                batch = next(batches)
            cost += batch_cost
            checksums.append(RecordStore.key({}, batch))
    return cost, checksums


def step_seconds(model: Any, layer: int, data: PrivacyPairDataModule, steps: int) -> float:
    """Median seconds of a training step."""
    editor = PrivacyEditModule(model, [layer])
    optimizer = editor.configure_optimizers()
    seconds = []
    for batch in islice(data.pairs_dataloader(), steps):
        with measure() as cost:
            batch_nll(model, batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(cost.seconds)
    return statistics.median(seconds)


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--records", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--train-steps", type=int, default=4)
    parser.add_argument("--photo", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    args, model, processor = parse_and_load(parser)
    with TemporaryDirectory() as folder:
        splits = records(Path(folder), args.records, args.pairs, args.photo)
        plain_data, fast_data = (
            PrivacyPairDataModule(splits, processor, picture_cache_bytes=size) for size in (0, CACHE_BYTES)
        )
        make_batches(plain_data, 1)  # warm-up: read files from disk
        plain, plain_checksums = make_batches(plain_data, args.epochs)
        fast, fast_checksums = make_batches(fast_data, args.epochs)
        training = len(fast_checksums) * step_seconds(model, args.layer, fast_data, args.train_steps)
    results = {
        "seconds_plain": plain.seconds,
        "seconds_fast": fast.seconds,
        "ratio": plain.seconds / fast.seconds,
        "agree": fast_checksums == plain_checksums,
        "seconds_training": training,
        "ratio_edit": (plain.seconds + training) / (fast.seconds + training),
        "bytes_held": fast_data.collate_training.caching_processor.cached_bytes,
        **{name: value for name, value in vars(args).items() if name != "json"},
        "threads": torch.get_num_threads(),
    }
    report(results, args.json)


if __name__ == "__main__":
    main()
