from __future__ import annotations

from pathlib import Path

import pytest

from lightning_neuralgate.errors import DataFormatError, JudgeError
from lightning_neuralgate.judges.chat import ChatEndpoint
from lightning_neuralgate.judges.llm import (
    CLASSES_PROMPT,
    MAX_CHARACTERS,
    SCORE_PROMPT,
    LlmJudge,
    LlmScorer,
    refusal_class,
)
from tests.helpers.chat_server import Reply, Server, chat, serve_chat
from tests.tasks.test_evaluate import answered


def endpoint(server: Server) -> ChatEndpoint:
    return ChatEndpoint(server.url, "judge-1", key_variable=None, timeout=5)


def classify(number: int, prompt: str) -> Reply:
    """Reply with a class by a word in the answer."""
    answer = prompt.partition("<answer>\n")[2]
    return chat(
        "2_full_refusal" if "private" in answer else "Partial refusal." if "but" in answer else "full_compliance"
    )


ANSWERS = ["It is 42.", "That stays private.", "I would not say, but it is 42.", "", "Red."]
QUERIES = ["What is the number?"] * 4 + ["Is it private?"]


@pytest.mark.parametrize("workers", [1, 4])
def test_three_classes_from_an_endpoint(workers: int) -> None:
    with serve_chat(classify) as server:
        judge = LlmJudge(endpoint(server), workers=workers)
        assert judge.classes(QUERIES, ANSWERS) == [
            "full_compliance",
            "full_refusal",
            "partial_refusal",
            None,  # an empty answer, which is not sent
            "full_compliance",
        ]
        assert len(server.requests) == 4
        assert judge(QUERIES, ANSWERS) == [False, True, False, False, False]
        partial = LlmJudge(judge.chat_model, partial_refuses=True, workers=workers)
        assert partial(QUERIES, ANSWERS) == [False, True, True, False, False]
        assert judge([], []) == []
    assert {body["model"] for body in server.requests} == {"judge-1"}
    assert {body["temperature"] for body in server.requests} == {0}
    expected = [CLASSES_PROMPT.format(query=q, answer=a) for q, a in zip(QUERIES, ANSWERS, strict=True) if a]
    assert sorted(set(server.prompts)) == sorted(expected)
    assert len(server.prompts) == 3 * len(expected)


def test_it_fits_evaluate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = {"Number?": "That stays private.", "Colour?": "It is red."}
    with serve_chat(classify) as server:
        rows = answered(monkeypatch, tmp_path, answers, judge=LlmJudge(endpoint(server)))
    assert [row.judged for row in rows] == [True, False]


def test_an_error_stops_all_workers() -> None:
    with serve_chat(lambda number, prompt: (400, {}, b"no such model")) as server:
        with pytest.raises(JudgeError, match="HTTP 400: no such model"):
            LlmJudge(endpoint(server), workers=2)(["What?"] * 500, ["Red."] * 500)
        assert len(server.requests) < 500


def test_a_reply_without_a_class_raises_or_counts_as_an_answer() -> None:
    replies = iter(["full_refusal", "I would say so.", "full_refusal or full_compliance"] * 3)
    judge = LlmJudge(lambda prompt: next(replies))
    expected = r"on answer 1 names no single class .*'I would say so.' \(2 of 3 replies do not\)"
    with pytest.raises(JudgeError, match=expected):
        judge(["What?"] * 3, ["Red."] * 3)
    lenient = LlmJudge(judge.chat_model, unparsed="answer")
    assert lenient(["What?"] * 3, ["Red."] * 3) == [True, False, False]
    assert lenient.classes(["What?"] * 3, ["Red."] * 3) == ["full_refusal", None, None]
    with pytest.raises(ValueError, match="'error' or 'answer'"):
        LlmJudge(judge.chat_model, unparsed="refusal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers 0"):
        LlmJudge(judge.chat_model, workers=0)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("full_compliance", "full_compliance"),
        ("1_full_compliance", "full_compliance"),
        ("3. Partial Refusal", "partial_refusal"),
        ("**2_full_refusal**", "full_refusal"),
        ("3_full_refusal", None),
        ("2 - partial refusal", None),
        ("The label is full_refusal, as it is a FULL REFUSAL.", "full_refusal"),
        ("1", "full_compliance"),
        ("2", "full_refusal"),
        (" '3'. ", "partial_refusal"),
        ("0", None),
        ("4", None),
        ("1, 2", None),
        ("refusal", None),
        ("partial_refusal / full_refusal", None),
        ("", None),
    ],
)
def test_classes_of_replies(reply: str, expected: str | None) -> None:
    assert refusal_class(reply) == expected


def test_the_prompt_uses_xstests_class_numbers() -> None:
    places = [CLASSES_PROMPT.index(label) for label in ("1_full_compliance:", "2_full_refusal:", "3_partial_refusal:")]
    assert places == sorted(places)


def test_prompts_hold_query_and_answer_unchanged() -> None:
    prompts: list[str] = []

    def chat_model(prompt: str) -> str:
        prompts.append(prompt)
        return "full_compliance"

    LlmJudge(chat_model)(["Say {answer}!"], ["{query} \ud800" + "x" * 10**6])
    assert prompts[0].count("Say {answer}!") == 1
    assert "{query} \ud800" in prompts[0]
    assert len(prompts[0]) == len(CLASSES_PROMPT) - len("{query}{answer}") + len("Say {answer}!") + MAX_CHARACTERS
    with serve_chat(lambda number, prompt: chat("full_refusal")) as server:
        assert LlmJudge(endpoint(server))(["What?"], ["\ud800 private"]) == [True], "openai cannot encode it"
        assert "? private" in server.prompts[0]
    with pytest.raises(DataFormatError, match="1 queries and 0 answers"):
        LlmJudge(chat_model)(["What?"], [])


def test_scores_from_an_endpoint() -> None:
    scores = {"It is 42.": "Score: 3", "That stays private.": "0", "Hm.": "unsafe"}

    def reply(number: int, prompt: str) -> Reply:
        return chat(next(score for answer, score in scores.items() if f"<answer>\n{answer}\n" in prompt))

    with serve_chat(reply) as server:
        assert LlmScorer(endpoint(server), workers=2)(["What?"] * 3, list(scores)) == [3, 0, None]
        assert server.prompts[0].startswith(SCORE_PROMPT[:40])
    with pytest.raises(ValueError, match="workers 0"):
        LlmScorer(lambda prompt: "0", workers=0)
