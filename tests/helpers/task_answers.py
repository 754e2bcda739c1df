"""Answers to all tasks, whose figures are worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_neuralgate.evaluation.answers import AnsweredItem, answer_line
from lightning_neuralgate.tasks.scoring import tally_answers, task_scores

SORRY = "I'm sorry, I can't tell."


def pope(number: int, truth: str, answer: str) -> AnsweredItem:
    fields = {"category": "random", "question_id": str(number), "question": f"Is it {number}?"}
    return AnsweredItem("pope", f"random/{number}", "a.png", f"Is it {number}? Please.", truth, fields, answer)


def mme(subtask: str, image: str, line: int, truth: str, answer: str) -> AnsweredItem:
    return AnsweredItem(
        "mme", f"{subtask}/{image}/{line}", image, f"Is it {line}?", truth, {"subtask": subtask}, answer
    )


def scienceqa(number: int, truth: str, answer: str) -> AnsweredItem:
    return AnsweredItem("scienceqa", f"q/{number}", "", "Which?", truth, {"choices": ["x", "y"]}, answer)


def guard(dimension: str, number: int, truth: str, answer: str) -> AnsweredItem:
    return AnsweredItem("mllmguard", f"{dimension}/{number}", "", "Tell me.", truth, {"dimension": dimension}, answer)


def privacy(record: str, number: int, role: str, truth: str, answer: str, split: str = "test") -> AnsweredItem:
    fields = {"split": split, "record": record, "role": role, "subject": "passport", "attribute": "", "synonyms": []}
    return AnsweredItem("privacy_pair", f"{split}/{record}/{number}", "a.png", "What is it?", truth, fields, answer)


ANSWERS = [
    pope(1, "yes", "Yes."), pope(2, "no", "No, there is none."), pope(3, "yes", SORRY), pope(4, "no", SORRY),
    # one image all right, one half right: accuracy 3/4, accuracy+ 1/2, so 125 points
    mme("OCR", "0.png", 0, "yes", "Yes"), mme("OCR", "0.png", 1, "no", "no."),
    mme("OCR", "1.png", 0, "yes", "Yes"), mme("OCR", "1.png", 1, "no", SORRY),
    scienceqa(1, "A", "A"), scienceqa(2, "B", "B. y"), scienceqa(3, "A", SORRY), scienceqa(4, "A", "x"),
    guard("privacy", 1, "12345", "It is 12345."), guard("privacy", 2, "12345", "I cannot share that."),
    guard("legality", 1, "777", "No idea."), guard("legality", 2, "", "Well."),
    privacy("p", 0, "sensitive", "12345", "It is 12345."), privacy("p", 1, "benign", "red", "It is red."),
    privacy("q", 0, "sensitive", "54321", SORRY), privacy("q", 1, "benign", "blue", "It is red."),
]  # fmt: skip


def written(folder: Path, answers: list[AnsweredItem]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "answers.jsonl").write_text("".join(map(answer_line, answers)), encoding="ascii")
    return folder


def figures(answers: list[AnsweredItem], **options: Any) -> dict[str, dict[str, float]]:
    scores = task_scores(tally_answers(answers, **options), "the list", resamples=50)
    return {task: row["figures"] for task, row in scores["tasks"].items()}


def changed(answers: list[AnsweredItem], **new: str) -> list[AnsweredItem]:
    """Replace the answers to some items."""
    return [
        AnsweredItem(**{**vars(item), "answer": new.get(item.item_id.replace("/", "_").replace(".", "_"), item.answer)})
        for item in answers
    ]


def guard_rows(answers: list[AnsweredItem], *scores: Any) -> list[dict[str, Any]]:
    """Rows of a file of judge scores, one per answer to MLLMGuard."""
    guarded = [item for item in answers if item.task == "mllmguard"]
    return [
        {"item_id": item.item_id, "answer": item.answer, "score": score}
        for item, score in zip(guarded, scores, strict=True)
    ]


def many(count: int) -> Iterator[AnsweredItem]:
    """Yield answers to all tasks, a fifth of them to each."""
    texts = (
        "Yes, it is.",
        "No, there is none.",
        SORRY,
        "B. y",
        "It is 12345, and the colour is red as far as I can see.",
    )
    for number in range(count // 10):
        image = number // 2
        yield from (pope(2 * number + n, ("yes", "no")[n], texts[(number + n) % 5]) for n in (0, 1))
        yield from (mme("OCR", f"{number}.png", n, ("yes", "no")[n], texts[(number + n) % 4]) for n in (0, 1))
        yield from (scienceqa(2 * number + n, "AB"[n], texts[(number * 3 + n) % 5]) for n in (0, 1))
        yield from (guard(("privacy", "bias")[n], number, "12345", texts[(number + 2 * n) % 5]) for n in (0, 1))
        yield from (
            privacy(f"r{image}", 2 * number + n, role, truth, texts[(number + n) % 5])
            for n, (role, truth) in enumerate((("sensitive", "12345"), ("benign", "red")))
        )
