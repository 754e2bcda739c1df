"""Compatibility of model families with each step of the workflow: locate, edit, evaluate, save, reload, revert.

    python -m benchmarks.models
    python -m benchmarks.models --json FILE --only minigpt4 qwen2_vl

Each family is a tiny random model with its real processor, used through the public API. A cell is `yes` if all checks of the
column pass, `full passes` if they pass without the fast implementation, and otherwise the error.

locate   all records are located, and fast and full passes give the same gate
edit     the gated edit changes only the chosen projection; with `scope="all"`, rows blocked by the gate stay unchanged
eval     all queries are answered, and answers with shared prefixes equal those of single queries
save     the saved folder has the same processor and bit-identical tensors
reload   the reloaded model gives the same answers
revert   the edit file restores the base weights bit for bit
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.models.loading import load_model
from lightning_neuralgate.prefix_cache import generate
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.tasks.evaluate import evaluate
from tests.helpers.tiny_checkpoints import CHECKPOINTS, tiny_checkpoint
from tests.helpers.tiny_llava import tiny_splits

YES, FULL_PASSES = "yes", "full passes"
FALLBACK = "full forward passes are run instead"
"""Part of the warning of `prefix_cache.verify.FastPath`."""
LAYER = 1
TITLES = {
    "llava": "LLaVA-1.5",
    "minigpt4": "MiniGPT-4 (LLaMA-2)",
    "minigpt4_qformer": "MiniGPT-4 (Q-Former, Vicuna)",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "smolvlm": "SmolVLM, SmolVLM2",
    "instructblip": "InstructBLIP-Vicuna",
    "gemma3": "Gemma 3",
    "llava_onevision": "LLaVA-OneVision",
    "qwen3_vl": "Qwen3-VL",
    "idefics3": "Idefics3",
    "paligemma2": "PaliGemma 2",
    "internvl": "InternVL",
    "mistral3": "Mistral 3 (Pixtral tower)",
}


class Workflow:
    """The workflow on one model; each method is a column and returns its cell."""

    def __init__(self, model: Any, processor: Any, splits: RecordSplits, folder: Path) -> None:
        self.model, self.processor, self.splits, self.folder = model, processor, splits, folder
        self.gate: NeuralGate | None = None
        model.save_pretrained(folder / "base")
        processor.save_pretrained(folder / "base")

    def _fit(self, module: Any, epochs: int, *callbacks: Any, **data: Any) -> None:
        seed_everything(0, verbose=False)
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=PrivacyPairDataModule(self.splits, self.processor, **data))

    def locate(self) -> str:
        """Compare the gates of fast and full passes."""
        gates = []
        with record_warnings() as messages:
            for fast in (True, False):
                locator = PrivacyLocatorModule(self.model, [LAYER], max_steps=25, reuse_prefix=fast)
                self._fit(locator, 1)
                gates.append(locator.gate)
        check(len(locator.vectors) == len(self.splits.edit), "not all records were located")
        self.gate = gates[0]
        for subject in self.gate.subjects:
            for gate in gates:
                rates = gate.rates(subject, LAYER)
                check(bool(rates.isfinite().all()) and len(rates) == find_decoder(self.model).hidden_size, "rates")
            check(torch.equal(*(gate.rates(subject, LAYER) for gate in gates)), f"gates differ for {subject}")
        return FULL_PASSES if any(FALLBACK in message for message in messages) else YES

    def edit(self) -> str:
        """Edit twice, with `scope="all"` and with the located gate, and check which weights changed."""
        check(self.gate is not None, "nothing was located")
        assert self.gate is not None
        layout = find_decoder(self.model)
        name = f"{layout.projection_path(LAYER)}.weight"
        # the located gate of a random model is arbitrary, so use one that certainly blocks half of the rows
        open_rows = torch.arange(layout.hidden_size) < layout.hidden_size // 2
        half = {subject: {LAYER: open_rows.float()} for subject in self.gate.subjects}
        gates = {"all": NeuralGate(half, self.gate.model, self.gate.records), "subject_last": self.gate}
        before = {key: value.clone() for key, value in self.model.state_dict().items()}
        for scope, gate in gates.items():
            self.model.load_state_dict(before)
            editor = PrivacyEditModule(self.model, [LAYER], self.processor, schedule="minibatch", lr=1e-2)
            self._fit(editor, 2, NeuralGateCallback(gate, scope, 0.3), pairs_per_batch=2)  # type: ignore[arg-type]
            after = self.model.state_dict()
            changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
            check(changed == {name}, f"{sorted(changed)} changed")
            rows = (after[name] != before[name]).any(1)
            if scope == "all":
                check(bool((rows <= open_rows).all()) and bool(rows.any()), "rows outside the gate changed, or none")
        self.editor = editor
        return YES

    def eval(self) -> str:
        """Compare answers in batches with answers of single queries."""
        with short_prefixes():
            self.answers = self._answers(self.model, self.processor, batch_size=8)
        queries = [row for record in self.splits.test for row in question_rows(record)]
        check(len(self.answers) == len(queries), "not all queries were answered")
        single_answers = answer_rows(self.model, self.processor, queries, 8, 1, share_prefixes=False)
        check(self.answers == single_answers, "answers depend on the batch")
        fast_path = generate._FAST_PATHS.get(self.model)
        return YES if fast_path is not None and fast_path.verified else FULL_PASSES

    def _answers(self, model: Any, processor: Any, batch_size: int) -> list[str]:
        answers = evaluate(
            model, processor, {"test": self.splits.test}, self.folder, "edited", max_new_tokens=8, batch_size=batch_size
        )
        return [answer.answer for answer in answers]

    def save(self) -> str:
        """Save and reload the edited model, and compare all tensors."""
        self.editor.save_pretrained(self.folder / "edited")
        self.reloaded = load_model(self.folder / "edited")
        model, processor = self.reloaded
        check(type(model) is type(self.model), f"reloaded as {type(model).__name__}")
        check(type(processor) is type(self.processor), f"reloaded with {type(processor).__name__}")
        before, after = self.model.state_dict(), model.state_dict()
        check(before.keys() == after.keys(), "tensor names differ")
        check(all(torch.equal(value, after[key]) for key, value in before.items()), "tensors differ")
        return YES

    def reload(self) -> str:
        """Compare the answers of the reloaded model."""
        model, processor = self.reloaded
        check(self._answers(model, processor, batch_size=8) == self.answers, "answers differ")
        return YES

    def revert(self) -> str:
        """Undo the edit with the edit file."""
        base, edited = self.folder / "base", self.folder / "edited"
        EditDelta.between(base, edited).save(self.folder / "edit.safetensors")
        EditDelta.load(self.folder / "edit.safetensors").revert(edited, self.folder / "reverted")
        check(
            WeightFiles(self.folder / "reverted").checksum == WeightFiles(base).checksum,
            "reverted weights differ from the base",
        )
        check(WeightFiles(edited).checksum != WeightFiles(base).checksum, "nothing was edited")
        return YES


COLUMNS: dict[str, Callable[[Workflow], str]] = {
    "locate": Workflow.locate, "edit": Workflow.edit, "eval": Workflow.eval, "save": Workflow.save, "reload": Workflow.reload,
    "revert": Workflow.revert,
}  # fmt: skip


def check(condition: bool, message: str) -> None:
    """Raise an AssertionError if a condition is false."""
    if not condition:
        raise AssertionError(message)


@contextmanager
def record_warnings() -> Any:
    """Collect the messages of all warnings in a block."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(warning.message) for warning in caught]


@contextmanager
def short_prefixes() -> Any:
    """Allow shared prefixes as short as those of tiny prompts."""
    default, generate._MIN_PREFIX = generate._MIN_PREFIX, 4
    yield
    generate._MIN_PREFIX = default


def run_family(family: str, folder: Path) -> dict[str, str]:
    """The row of a family; columns after a failed one are not tried."""
    model, processor = tiny_checkpoint(family)
    workflow = Workflow(model, processor, tiny_splits(folder), folder)
    row = {}
    for name, column in COLUMNS.items():
        try:
            row[name] = column(workflow)
        except Exception as error:  # the error is the result
            row[name] = f"no: {type(error).__name__}: {error}".split("\n")[0][:120]
            break
    return row


def table(rows: dict[str, dict[str, str]]) -> str:
    """Format the rows as a Markdown table."""
    lines = [f"| model | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * len(COLUMNS)}"]
    for family, row in rows.items():
        lines.append(f"| {TITLES[family]} | {' | '.join(row.get(column, 'not tried') for column in COLUMNS)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CHECKPOINTS, default=list(CHECKPOINTS))
    parser.add_argument("--json", type=Path, help="also write the cells to this file")
    args = parser.parse_args(argv)
    rows = {}
    for family in args.only:
        with TemporaryDirectory() as folder:
            rows[family] = run_family(family, Path(folder))
    print(table(rows))
    if args.json is not None:
        with atomic_write(args.json) as draft:
            draft.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
