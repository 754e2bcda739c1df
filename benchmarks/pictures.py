"""An edit whose pictures are decoded and processed once, beside one that does so in each query and each epoch.

    python -m benchmarks.pictures --geometry llava-1.5 --json FILE

Both sides make the batches of the same edit in this process, the plain one with no room for processed pictures. They agree if
every tensor of every batch is the same, bit for bit. `ratio` is that of making batches alone; `ratio_edit` that of making
them and training on them, with the seconds of a training step measured on `--train-steps` of the batches: what the whole edit
gains. `--photo WIDTH HEIGHT` puts photographs of that size in the place of the rendered pictures, as JPEG.
"""

from __future__ import annotations

import statistics
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from benchmarks.records import told
from benchmarks.side_by_side import Cost, measured, opened, parser, tell
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.pictures import CACHE_BYTES
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.locate.record_store import RecordStore


def records(folder: Path, count: int, pairs: int, photo: list[int] | None) -> RecordSplits:
    """Records to edit, of two subjects, with targets; as photographs if a size is given."""
    splits = render_splits(
        folder, 0, edit_records=-(-count // 2), test_records=1, edit_pairs=pairs, test_pairs=1,
        subjects=("passport", "receipt"),
    )  # fmt: skip
    edit = told(splits.edit)[:count]
    if photo:
        shot = []
        for record in edit:
            file = record.image.with_suffix(".jpg")
            with Image.open(record.image) as image:
                image.convert("RGB").resize((photo[0], photo[1])).save(file, quality=90)
            shot.append(record.model_copy(update={"image": file}))
        edit = shot
    return splits._replace(edit=edit)


def made_in(data: PrivacyPairDataModule, epochs: int) -> tuple[Cost, list[str]]:
    """What it costs to make all batches of so many epochs, one at a time, and what they are."""
    cost, made = Cost(), []
    loader = data.pairs_dataloader()
    for epoch in range(epochs):
        loader.order.set_epoch(epoch)
        batches = iter(loader)
        for _ in range(len(loader)):
            with measured() as one:
                batch = next(batches)
            cost += one
            made.append(RecordStore.key({}, batch))
    return cost, made


def step_seconds(model: Any, layer: int, data: PrivacyPairDataModule, steps: int) -> float:
    """Median seconds of a training step."""
    editor = PrivacyEditModule(model, [layer])
    optimizer = editor.configure_optimizers()
    taken = []
    for batch in islice(data.pairs_dataloader(), steps):
        with measured() as cost:
            batch_nll(model, batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        taken.append(cost.seconds)
    return statistics.median(taken)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--records", type=int, default=4)
    made.add_argument("--pairs", type=int, default=6)
    made.add_argument("--epochs", type=int, default=4)
    made.add_argument("--layer", type=int, default=10)
    made.add_argument("--train-steps", type=int, default=4)
    made.add_argument("--photo", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    args, model, processor = opened(made)
    with TemporaryDirectory() as folder:
        splits = records(Path(folder), args.records, args.pairs, args.photo)
        data = {room: PrivacyPairDataModule(splits, processor, picture_cache_bytes=room) for room in (0, CACHE_BYTES)}
        made_in(data[0], 1)  # the first of all pays for what is read from disk
        plain, expected = made_in(data[0], args.epochs)
        fast, found = made_in(data[CACHE_BYTES], args.epochs)
        training = len(found) * step_seconds(model, args.layer, data[CACHE_BYTES], args.train_steps)
    results = {
        "seconds_plain": plain.seconds,
        "seconds_fast": fast.seconds,
        "ratio": plain.seconds / fast.seconds,
        "agree": found == expected,
        "seconds_training": training,
        "ratio_edit": (plain.seconds + training) / (fast.seconds + training),
        "bytes_held": data[CACHE_BYTES].collate_training.caching_processor.cached_bytes,
        **{name: value for name, value in vars(args).items() if name != "json"},
        "threads": torch.get_num_threads(),
    }
    tell(results, args.json)


if __name__ == "__main__":
    main()
