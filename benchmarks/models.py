"""What of the whole job works on which family of models: locate, edit, evaluate, save, reload, take back.

    python -m benchmarks.models
    python -m benchmarks.models --json FILE --only minigpt4 qwen2_vl

Each family is a tiny random model with its real processor, run through the package's own entry points. A cell says `yes` when
all that it stands for was checked, `whole passes` when the result is right but a fast way was not taken, and else what went
wrong.

locate   every record's vectors are found, and the fast passes give the same gate as whole ones
edit     the gated edit changes the chosen projection, and nothing else, bit for bit; with `scope="all"` closed rows stay
eval     every query is answered, and answers that share what their prompts begin with are those of each query alone
save     every tensor comes back from the saved folder, bit for bit, with the same processor
reload   the reloaded model gives the answers of the one in memory
revert   the edit's file takes the saved weights back to the base, bit for bit
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

from lightning_neuralgate.data.collator import PrivacyPairCollator
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.evaluation.run import evaluate
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.models.loading import load_model
from lightning_neuralgate.prefix_cache import generate
from lightning_neuralgate.prefix_cache.prefix import SharedPrefix
from lightning_neuralgate.runtime.files import atomic_write
from tests.helpers.tiny_checkpoints import CHECKPOINTS, tiny_checkpoint
from tests.helpers.tiny_llava import tiny_splits

YES, WHOLE = "yes", "whole passes"
LAYER = 1
TITLES = {
    "llava": "LLaVA-1.5",
    "minigpt4": "MiniGPT-4 (LLaMA-2)",
    "minigpt4_qformer": "MiniGPT-4 (Q-Former, Vicuna)",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "smolvlm": "SmolVLM",
    "instructblip": "InstructBLIP-Vicuna",
    "gemma3": "Gemma 3",
    "llava_onevision": "LLaVA-OneVision",
}


class Job:
    """The job on one model; each method is a column, and says `yes`, or how else it went."""

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
        """Gates with and without the fast passes."""
        gates = []
        with noted() as notes:
            for fast in (True, False):
                locator = PrivacyLocatorModule(self.model, [LAYER], max_steps=25, reuse_prefix=fast)
                self._fit(locator, 1)
                gates.append(locator.gate)
        expected(len(locator.vectors) == len(self.splits.edit), "not every record was located")
        self.gate = gates[0]
        for subject in self.gate.subjects:
            for gate in gates:
                rates = gate.rates(subject, LAYER)
                expected(bool(rates.isfinite().all()) and len(rates) == find_decoder(self.model).hidden_size, "rates")
            expected(torch.equal(*(gate.rates(subject, LAYER) for gate in gates)), f"gates differ for {subject}")
        return WHOLE if any("taking full passes" in note for note in notes) else YES

    def edit(self) -> str:
        """Two edits, of which the second, with `scope="all"`, is taken back."""
        expected(self.gate is not None, "nothing was located")
        assert self.gate is not None
        layout = find_decoder(self.model)
        name = f"{layout.projection_path(LAYER)}.weight"
        # what a random model's own gate opens is chance; half of another's rows are closed for sure
        opened = torch.arange(layout.hidden_size) < layout.hidden_size // 2
        half = {subject: {LAYER: opened.float()} for subject in self.gate.subjects}
        gates = {"all": NeuralGate(half, self.gate.model, self.gate.records), "subject_last": self.gate}
        before = {key: value.clone() for key, value in self.model.state_dict().items()}
        for scope, gate in gates.items():
            self.model.load_state_dict(before)
            editor = PrivacyEditModule(self.model, [LAYER], self.processor, schedule="minibatch", lr=1e-2)
            self._fit(editor, 2, NeuralGateCallback(gate, scope, 0.3), pairs_per_batch=2)  # type: ignore[arg-type]
            after = self.model.state_dict()
            changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
            expected(changed == {name}, f"{sorted(changed)} changed")
            rows = (after[name] != before[name]).any(1)
            if scope == "all":
                expected(bool((rows <= opened).all()) and bool(rows.any()), "rows outside the gate changed, or none")
        self.editor = editor
        return YES

    def eval(self) -> str:
        """Answers together and one by one."""
        with noted() as notes, short_prefixes():
            self.answers = self._answers(self.model, self.processor, batch_size=8)
        queries = [row for record in self.splits.test for row in question_rows(record)]
        expected(len(self.answers) == len(queries), "not every query was answered")
        alone = answer_rows(self.model, self.processor, queries, 8, 1, share_prefixes=False)
        expected(self.answers == alone, "answers depend on their company")
        about_one = question_rows(self.splits.test[0])
        batch = PrivacyPairCollator(self.processor)(about_one)
        shared = SharedPrefix(self.model, batch, [row.image for row in about_one]).length
        refused = any("cannot share what they begin with" in note for note in notes)
        return YES if shared and not refused else WHOLE

    def _answers(self, model: Any, processor: Any, batch_size: int) -> list[str]:
        found = evaluate(
            model, processor, {"test": self.splits.test}, self.folder, "edited", max_new_tokens=8, batch_size=batch_size
        )
        return [answer.answer for answer in found]

    def save(self) -> str:
        """The edited folder, tensor by tensor."""
        self.editor.save_pretrained(self.folder / "edited")
        self.again = load_model(self.folder / "edited")
        model, processor = self.again
        expected(type(model) is type(self.model), f"comes back as {type(model).__name__}")
        expected(type(processor) is type(self.processor), f"comes back with {type(processor).__name__}")
        before, after = self.model.state_dict(), model.state_dict()
        expected(before.keys() == after.keys(), "names of tensors differ")
        expected(all(torch.equal(value, after[key]) for key, value in before.items()), "tensors differ")
        return YES

    def reload(self) -> str:
        """Answers of the reloaded model."""
        model, processor = self.again
        expected(self._answers(model, processor, batch_size=8) == self.answers, "answers differ")
        return YES

    def revert(self) -> str:
        """The edit's file, backwards."""
        base, edited = self.folder / "base", self.folder / "edited"
        EditDelta.between(base, edited).save(self.folder / "edit.safetensors")
        EditDelta.load(self.folder / "edit.safetensors").revert(edited, self.folder / "back")
        expected(WeightFiles(self.folder / "back").checksum == WeightFiles(base).checksum, "other weights")
        expected(WeightFiles(edited).checksum != WeightFiles(base).checksum, "nothing was edited")
        return YES


COLUMNS: dict[str, Callable[[Job], str]] = {
    "locate": Job.locate, "edit": Job.edit, "eval": Job.eval, "save": Job.save, "reload": Job.reload,
    "revert": Job.revert,
}  # fmt: skip


def expected(holds: bool, otherwise: str) -> None:
    """Raise if something does not hold."""
    if not holds:
        raise AssertionError(otherwise)


@contextmanager
def noted() -> Any:
    """The texts of all warnings of a block."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    notes += [str(one.message) for one in caught]


@contextmanager
def short_prefixes() -> Any:
    """Let answers share prefixes as short as those of tiny prompts."""
    kept, generate._MIN_PREFIX = generate._MIN_PREFIX, 4
    yield
    generate._MIN_PREFIX = kept


def tried(family: str, folder: Path) -> dict[str, str]:
    """The row of a family; columns behind one that failed are not tried."""
    model, processor = tiny_checkpoint(family)
    job = Job(model, processor, tiny_splits(folder), folder)
    row = {}
    for name, column in COLUMNS.items():
        try:
            row[name] = column(job)
        except Exception as error:  # what a family does not allow is this command's result
            row[name] = f"no: {type(error).__name__}: {error}".split("\n")[0][:120]
            break
    return row


def table(rows: dict[str, dict[str, str]]) -> str:
    """As Markdown."""
    lines = [f"| model | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * len(COLUMNS)}"]
    for family, row in rows.items():
        lines.append(f"| {TITLES[family]} | {' | '.join(row.get(column, 'not tried') for column in COLUMNS)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CHECKPOINTS, default=list(CHECKPOINTS))
    parser.add_argument("--json", type=Path, help="write the table's cells there, too")
    args = parser.parse_args(argv)
    rows = {}
    for family in args.only:
        with TemporaryDirectory() as folder:
            rows[family] = tried(family, Path(folder))
    print(table(rows))
    if args.json is not None:
        with atomic_write(args.json) as draft:
            draft.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
