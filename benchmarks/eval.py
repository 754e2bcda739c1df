"""Answering the test queries in batches, compared with one at a time.

    python -m benchmarks.eval --json FILE

Both sides answer the same queries with the same model in this process, with greedy decoding. They agree if all answers are
the same. `floor_share` is the time that the products with weights would take at the rate of a large matrix product (one pass
over every prompt and every generated token), relative to the time of the fast side. With `--until-decided` the fast side
stops each answer as soon as the rest cannot change whether it is a refusal; both sides agree if all verdicts are the same.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import make_parser, parse_and_load, report_comparison
from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.metrics.functional import is_refusal, verdict_stands
from lightning_neuralgate.models.costs import matmul_rate
from lightning_neuralgate.runtime.cost import measure


def queries(folder: Path, records: int) -> list[QueryRow]:
    """All test queries of some rendered records."""
    splits = render_splits(folder, 0, edit_records=1, test_records=-(-records // 6), edit_pairs=1, test_pairs=2)
    return [row for record in splits.test[:records] for row in question_rows(record)]


def floor_flops(model: Any, processor: Any, rows: list[QueryRow], answers: list[str]) -> float:
    """Floating point operations of the products with weights that the answers need."""
    decoder = sum(p.numel() for p in find_decoder(model).layers.parameters() if p.ndim == 2)
    vocabulary = model.get_output_embeddings().weight.numel()
    batch = PrivacyPairCollator(processor)(rows)
    prompts = int(batch["attention_mask"].sum())
    generated = sum(len(processor.tokenizer(answer)["input_ids"]) + 1 for answer in answers)
    return 2.0 * (decoder * (prompts + generated) + vocabulary * (len(rows) + generated))


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--records", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--max-new-tokens", type=int, default=20)
    parser.add_argument(
        "--until-decided", action="store_true", help="stop answers once the keyword list's verdict is decided"
    )
    args, model, processor = parse_and_load(parser)
    until = verdict_stands if args.until_decided else None
    rate = matmul_rate(model.device, model.dtype)
    with TemporaryDirectory() as folder:
        rows = queries(Path(folder), args.records)
        answer_rows(model, processor, rows[:2], 1, 2)  # warm-up
        with measure() as fast:
            fast_answers = answer_rows(model, processor, rows, args.max_new_tokens, args.batch_size, until=until)
        with measure() as plain:
            plain_answers = answer_rows(model, processor, rows, args.max_new_tokens, 1)
        floor = floor_flops(model, processor, rows, fast_answers) / rate
    if args.until_decided:
        different = sum(is_refusal(f) != is_refusal(p) for f, p in zip(fast_answers, plain_answers, strict=True))
    else:
        different = sum(f != p for f, p in zip(fast_answers, plain_answers, strict=True))
    report_comparison(args, plain, fast, different == 0, floor, different=different, queries=len(rows))


if __name__ == "__main__":
    main()
