"""Every reader of files, with valid files to damage."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from lightning_neuralgate.data.authors import read_authors_json
from lightning_neuralgate.data.image_files import read_image
from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, RecordSplits, read_records, read_retention
from lightning_neuralgate.data.rendering.draw import render
from lightning_neuralgate.data.rendering.spec import SUBJECTS_FOLDER, load_subject_spec
from lightning_neuralgate.data.scenes.draw import draw_scene
from lightning_neuralgate.data.scenes.spec import PLACES_FOLDER, SIGNS_FOLDER, load_scene_spec, load_sign_spec
from lightning_neuralgate.data.splits import check_no_leakage
from lightning_neuralgate.demo.run import _read_results
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.errors import NeuralGateError
from lightning_neuralgate.evaluation.answers import read_answers
from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.gate.neural_gate import CONFIG_NAME, NeuralGate
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.judges.probe import WEIGHTS, _read_weights
from lightning_neuralgate.tasks.answer_store import IndexedAnswers, logged_lines, read_answered
from lightning_neuralgate.tasks.benchmarks.mllmguard import read_mllmguard
from lightning_neuralgate.tasks.benchmarks.mme import read_mme
from lightning_neuralgate.tasks.benchmarks.pope import read_pope
from lightning_neuralgate.tasks.benchmarks.scienceqa import read_scienceqa
from lightning_neuralgate.tasks.comparing import read_changes
from lightning_neuralgate.tasks.item import BrokenItems, skipped_counts
from lightning_neuralgate.tasks.scoring import question_counts
from tests.data.picture_files import FILES
from tests.helpers.answers import judged_answer
from tests.helpers.task_files import mllmguard_folder, mme_folder, parquet, picture, pope_files, pope_rows


class Reader(NamedTuple):
    """A reader: the name of the file it reads, valid contents, and a call that reads a file.

    `place` is a pattern of the place that errors name beside the file; it is not looked for in files without such places.
    """

    file: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path], object]
    place: str = ""


def refusal(reader: Reader, folder: Path, content: bytes) -> str | None:
    """Let a reader read a file; return the message with which it was refused, after checking that it names file and place."""
    file = folder / reader.file
    file.write_bytes(content)
    try:
        reader.read(file)
        return None
    except NeuralGateError as error:
        message = str(error)
    assert reader.file.partition(".")[0] in message, f"the file is not named: {message}"
    assert re.search(reader.place, message), f"the place is not named: {message}"
    return message


_PAIR = {"sensitive": "The number?", "benign": "The colour?", "refusal": "I cannot", "sensitive_truth": "12 34"}
_RECORD = {"split": "edit", "record_id": "a", "subject": "passport", "image": "a.png", "pairs": [_PAIR]}
_CASE = {
    "case_id": 1, "image": "a.png", "paraphrase_prompts": ["The number?"], "neighborhood_prompts": ["The colour?"],
    "requested_rewrite": {"prompt": "Number of {}?", "target_new": {"str": "I cannot"}, "subject": "passport"},
}  # fmt: skip
_ANSWERED = {
    "task": "pope", "item_id": "random/1", "image": "a.png", "prompt": "Is it?", "truth": "yes",
    "fields": {"category": "random", "question_id": "1"}, "answer": "Yes",
}  # fmt: skip
_SKIPPED = {"task": "pope", "file": "a.json", "record": "line 1", "reason": "x", "item_id": "random/2"}
_RUN = {"available": {"pope": 2}, "unreadable": {}, "answered": {"pope": 1}, "questions": {"pope": 2}}
_CHANGE = {
    "task": "pope", "item_id": "a", "prompt": "Is it?", "truth": "yes", "first": "right", "second": "wrong",
    "first_answer": "Yes", "second_answer": "No",
}  # fmt: skip


def _lines(*rows: dict[str, Any]) -> Callable[[], Sequence[bytes]]:
    return lambda: [("\n".join(map(json.dumps, rows)) + "\n").encode()]


def _json(content: Any) -> Callable[[], Sequence[bytes]]:
    return lambda: [json.dumps(content).encode()]


def _with_picture(read: Callable[[Path], object]) -> Callable[[Path], object]:
    def read_beside(file: Path) -> object:
        if not (file.parent / "a.png").exists():
            picture(file.parent / "a.png")
        return read(file)

    return read_beside


def _made(make: Callable[[Path], object], name: str) -> Callable[[], Sequence[bytes]]:
    """Return the content of a file that `make` writes into a folder."""

    @lru_cache(maxsize=1)
    def seeds() -> Sequence[bytes]:
        with TemporaryDirectory() as folder:
            make(Path(folder))
            return [(Path(folder) / name).read_bytes()]

    return seeds


def _gate(folder: Path) -> NeuralGate:
    identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
    gate = NeuralGate({"passport": {1: torch.tensor([0.0, 0.2, 0.5, 1.0])}}, identity, {"passport": 5})
    gate.save_pretrained(folder)
    return gate


def _read_gate(file: Path) -> object:
    content = file.read_bytes()
    _gate(file.parent)
    file.write_bytes(content)
    return NeuralGate.from_pretrained(file.parent)


def _keys(folder: Path) -> None:
    identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
    InputCovariance({1: torch.diag(torch.tensor([2.0, 1.0]))}, identity, tokens=5, prompts=1).save_pretrained(folder)


def _read_keys(file: Path) -> object:
    content = file.read_bytes()
    _keys(file.parent)
    file.write_bytes(content)
    return InputCovariance.from_pretrained(file.parent)


def _delta(folder: Path) -> None:
    for name, value in (("base", 0.0), ("edited", 1.0)):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(save({"a.weight": torch.full((2, 3), value)}))
    EditDelta.between(folder / "base", folder / "edited", {"gate": "abc"}).save(folder / "edit.safetensors")


def _read_index(file: Path) -> object:
    (file.parent / "a.safetensors").write_bytes(save({"a.weight": torch.zeros(2, 3)}))
    return WeightFiles(file.parent).tensors


def _read_judge(file: Path) -> object:
    if not (weights := file.with_suffix(".safetensors")).exists():
        weights.write_bytes(WEIGHTS.read_bytes())
    return _read_weights(weights)


def _pictures() -> Sequence[bytes]:
    contents = [make() for make in FILES.values()]
    for kind in ("JPEG", "GIF", "WEBP", "BMP", "PPM", "TIFF", "PNG"):
        stream = io.BytesIO()
        Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(stream, kind)
        contents.append(stream.getvalue())
    return contents


def _leakage(file: Path) -> None:
    pair = QueryPair(sensitive="The number?", benign="The colour?", refusal="I cannot")
    record = PrivacyRecord(record_id="a", subject="passport", image=file, pairs=(pair,))
    check_no_leakage(RecordSplits([record], [], [], []))


def _draw(file: Path) -> None:
    render(load_subject_spec(file), 0, 48)


def _draw_scene(file: Path) -> None:
    draw_scene(load_scene_spec(file), 0, size=48)


def _mme_seed(folder: Path) -> None:
    mme_folder(folder)


def _read_mme(file: Path) -> None:
    mme_folder(file.parent / "mme")
    (file.parent / "mme" / "OCR" / "questions_answers_YN" / file.name).write_bytes(file.read_bytes())
    list(read_mme(file.parent / "mme", BrokenItems()))


def _read_pope(file: Path) -> None:
    for number in range(2):
        picture(file.parent / f"COCO_{number}.png")
    list(read_pope(file, BrokenItems(), file.parent))


def _read_guard(file: Path) -> None:
    folder = mllmguard_folder(file.parent / "guard", ("bias",))
    (folder / "bias" / file.name).write_bytes(file.read_bytes())
    list(read_mllmguard(folder, BrokenItems()))


def _indexed(file: Path) -> None:
    with IndexedAnswers(file) as answers:
        answers.get(("pope", "random/1"))


LINE = r"line \d+"
READERS: dict[str, Reader] = {
    "records": Reader("records.jsonl", _lines(_RECORD, _RECORD), _with_picture(lambda f: read_records(f, f.parent)), LINE),
    "retention": Reader(
        "retention.jsonl", _lines({"query": "What?"}, {"query": "And?", "image": "a.png"}),
        _with_picture(lambda f: read_retention(f, f.parent)), LINE,
    ),
    "authors' records": Reader(
        "pairs.json", _json([_CASE]), _with_picture(lambda f: read_authors_json(f, f.parent)), "line|record|expected a list"
    ),
    "judged answers": Reader(
        "answers.jsonl", lambda: _lines(asdict(judged_answer(True, "I cannot say.", True)))(),
        read_answers, LINE,
    ),
    "task answers": Reader("answers.jsonl", _lines(_ANSWERED), lambda f: list(read_answered(f)), LINE),
    "indexed answers": Reader("answers.jsonl", _lines(_ANSWERED), _indexed),
    "log of answers": Reader(
        "part-0.jsonl", _lines(_ANSWERED, {"task": "pope", "item_id": "b", "broken": _SKIPPED}),
        lambda f: list(logged_lines(f)), LINE,
    ),
    "skipped items": Reader("broken.jsonl", _lines(_SKIPPED), lambda f: skipped_counts(f.parent), LINE),
    "changed items": Reader("changed.jsonl", _lines(_CHANGE), lambda f: list(read_changes(f.parent)), LINE),
    "run": Reader("run.json", _json(_RUN), lambda f: question_counts(f.parent)),
    "results": Reader("results.json", _json({"seed": 0, "settings": {}, "versions": {}}), lambda f: _read_results(f.parent)),
    "POPE": Reader(
        "pope.json", _made(lambda folder: pope_files(folder, name="pope.json"), "pope.json"),
        _read_pope, LINE,
    ),
    "POPE, parquet": Reader(
        "pope.parquet", _made(lambda folder: parquet(folder / "pope.parquet", pope_rows(3)), "pope.parquet"),
        lambda f: list(read_pope(f, BrokenItems())),
    ),
    "ScienceQA": Reader(
        "q.jsonl", _lines({"image": "a.png", "question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": ""}),
        _with_picture(lambda f: list(read_scienceqa(f, BrokenItems(), f.parent))), LINE,
    ),
    "MME": Reader("0.txt", _made(_mme_seed, "OCR/questions_answers_YN/0.txt"), _read_mme),
    "MLLMGuard, CSV": Reader("prompt.csv", _made(lambda folder: mllmguard_folder(folder), "bias/prompt.csv"), _read_guard),
    "subject": Reader(
        "own.yaml", lambda: [file.read_bytes() for file in sorted(SUBJECTS_FOLDER.glob("*.yaml"))[:4]], _draw
    ),
    "place": Reader(
        "own.yaml", lambda: [file.read_bytes() for file in sorted(PLACES_FOLDER.glob("*.yaml"))[:4]], _draw_scene
    ),
    "sign": Reader("own.yaml", lambda: [file.read_bytes() for file in sorted(SIGNS_FOLDER.glob("*.yaml"))], load_sign_spec),
    "picture": Reader("scan.png", _pictures, lambda f: read_image(f, "r7"), "record r7"),
    "picture, leakage check": Reader("scan.png", _pictures, _leakage, "record a"),
    "gate, JSON": Reader(CONFIG_NAME, _made(_gate, CONFIG_NAME), _read_gate),
    "gate, rates": Reader("gate.safetensors", _made(_gate, "gate.safetensors"), _read_gate),
    "keys, JSON": Reader("keys.json", _made(_keys, "keys.json"), _read_keys),
    "keys, matrices": Reader("keys.safetensors", _made(_keys, "keys.safetensors"), _read_keys),
    "edit": Reader("edit.safetensors", _made(_delta, "edit.safetensors"), EditDelta.load),
    "weights": Reader("model.safetensors", lambda: [save({"a.weight": torch.zeros(2, 3)})], lambda f: WeightFiles(f.parent)),
    "index of weights": Reader(
        "model.safetensors.index.json", _json({"weight_map": {"a.weight": "a.safetensors"}}), _read_index
    ),
    "refusal judge": Reader("refusal_judge.json", lambda: [WEIGHTS.with_suffix(".json").read_bytes()], _read_judge),
}  # fmt: skip
"""Name -> reader."""
