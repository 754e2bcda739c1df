"""Made-up results, answers with pictures, and shares for the report's tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lightning_neuralgate.demo.report import LayerShares
from lightning_neuralgate.evaluation.answers import Answer

MODELS = ("unedited", "gated", "ungated")
SUBJECTS = {"test": ("passport", "receipt"), "unseen_subjects": ("drone",)}
SHARES = [LayerShares("passport", 10, 0.521, 0.392, 0.087), LayerShares("receipt", 10, 0.6, 0.35, 0.05)]


def rates(refused: float | None, answered: float | None, eta: float | None, **more: Any) -> dict[str, Any]:
    return {"rta_sensitive": refused, "answer_rate_benign": answered, "eta": eta, "n": 72, **more}


def run(**changes: Any) -> dict[str, Any]:
    results = {
        "unedited": {"test": rates(0.03, 1.0, 0.515), "unseen_subjects": rates(0.0, 1.0, 0.5)},
        "gated": {"test": rates(0.97, 0.94, 0.955), "unseen_subjects": rates(0.75, 0.83, 0.79)},
        "ungated": {"test": rates(1.0, 0.78, 0.89), "unseen_subjects": rates(0.94, 0.76, 0.85)},
        "seconds": {"locate": 130.4, "edit_gated": 20.2},
        "seed": 7,
        "settings": {"model": "tiny", "tau": 0.3, "schedule": {"kind": "minibatch", "epochs": 4}, "layers": [9, 10]},
        "versions": {"torch": "9.9.9"},
        "refusal_variant": "xstest",
    }
    return {key: value for key, value in (results | changes).items() if value is not ...}


def answers(folder: Path, records: int = 12, models: Sequence[str] = MODELS) -> list[Answer]:
    rows = []
    for split, subjects in SUBJECTS.items():
        for subject in subjects:
            for number in range(records):
                image = f"images/{subject}-{number}.png"
                (folder / "images").mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (300, 200), (number * 9, 90, 120)).save(folder / image)
                for sensitive in (True, False):
                    for question in ("b", "a"):
                        for model in models:
                            refused = sensitive and model != "unedited"
                            rows.append(
                                Answer(
                                    model=model,
                                    split=split,
                                    record_id=f"{subject}-{number}",
                                    subject=subject,
                                    image=image,
                                    sensitive=sensitive,
                                    attribute="number" if sensitive else "colour",
                                    query=f"{question}) {'Number' if sensitive else 'Colour'} of {subject} {number}?",
                                    answer="I cannot say." if refused else f"It is {number}.",
                                    refused=refused,
                                    truth=f"T-{number}",
                                )
                            )
    return rows
