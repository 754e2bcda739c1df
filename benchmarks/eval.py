"""Answering the test queries many at a time, beside one at a time.

    python -m benchmarks.eval --json FILE

Both sides ask the same queries of the same model in this process, greedily. They agree if every answer is the same, token for
token. `floor_share`: the seconds that the products with weights would take at the rate of a large matrix product, over those
of the fast side: one pass over every prompt, and one over every token that was told. With `--until-decided` the fast side
ends each answer where the rest cannot change whether it refuses, and they agree if every verdict is the same.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.side_by_side import compare, matmul_rate, measured, opened, parser
from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.metrics.functional import is_refusal, verdict_stands


def queries(folder: Path, records: int) -> list[QueryRow]:
    """All test queries of so many records."""
    splits = render_splits(folder, 0, edit_records=1, test_records=-(-records // 6), edit_pairs=1, test_pairs=2)
    return [row for record in splits.test[:records] for row in question_rows(record)]


def floor_flops(model: Any, processor: Any, rows: list[QueryRow], answers: list[str]) -> float:
    """Products with weights that the answers need."""
    decoder = sum(p.numel() for p in find_decoder(model).layers.parameters() if p.ndim == 2)
    vocabulary = model.get_output_embeddings().weight.numel()
    batch = PrivacyPairCollator(processor)(rows)
    prompts = int(batch["attention_mask"].sum())
    told = sum(len(processor.tokenizer(answer)["input_ids"]) + 1 for answer in answers)
    return 2.0 * (decoder * (prompts + told) + vocabulary * (len(rows) + told))


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--records", type=int, default=12)
    made.add_argument("--batch-size", type=int, default=24)
    made.add_argument("--max-new-tokens", type=int, default=20)
    made.add_argument("--until-decided", action="store_true", help="verdicts alone, of the keyword list")
    args, model, processor = opened(made)
    until = verdict_stands if args.until_decided else None
    rate = matmul_rate(model.device, model.dtype)
    with TemporaryDirectory() as folder:
        rows = queries(Path(folder), args.records)
        answer_rows(model, processor, rows[:2], 1, 2)  # the first of all pays for what is set up and found out
        with measured() as fast:
            found = answer_rows(model, processor, rows, args.max_new_tokens, args.batch_size, until=until)
        with measured() as plain:
            expected = answer_rows(model, processor, rows, args.max_new_tokens, 1)
        floor = floor_flops(model, processor, rows, found) / rate
    if args.until_decided:
        found, expected = ([is_refusal(answer) for answer in answers] for answers in (found, expected))
    different = sum(one != other for one, other in zip(found, expected, strict=True))
    compare(args, plain, fast, different == 0, floor, different=different, queries=len(rows))


if __name__ == "__main__":
    main()
