from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_neuralgate.errors import DataFormatError, JudgeError
from lightning_neuralgate.judges.chat import ChatEndpoint, LocalChat
from lightning_neuralgate.judges.llm import (
    CLASSES_PROMPT,
    MAX_CHARACTERS,
    SCORE_PROMPT,
    LlmJudge,
    LlmScorer,
    refusal_class,
)
from tests.helpers.tiny_llava import tiny_processor
from tests.tasks.test_evaluate import answered

KEY = "sk-a-secret-of-the-test"
Reply = tuple[int, dict[str, str], bytes]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def chat(text: Any) -> Reply:
    """A reply as the protocol has it."""
    content = {"id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return 200, {}, json.dumps(content).encode()


@dataclass
class Server:
    """A server on this machine, and what it was asked."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        pass  # clients that do not wait are part of these tests


@contextmanager
def serving(reply: Callable[[int, str], Reply]) -> Iterator[Server]:
    """Serve `reply(number of the request, prompt)`."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.asked)
                server.asked.append(body)
                server.headers.append(dict(self.headers))
                server.paths.append(self.path)
            status, headers, content = reply(number, body["messages"][0]["content"])
            if status == 0:  # hangs up
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    listener = _QuietServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listener.server_address[1]}/v1")
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def endpoint(server: Server, **options: Any) -> ChatEndpoint:
    return ChatEndpoint(server.url, "judge-1", **{"key_variable": None, "wait": 0, "timeout": 5, **options})


def classified(number: int, prompt: str) -> Reply:
    """A judge that looks for a word in the answer."""
    answer = prompt.partition("<answer>\n")[2]
    return chat(
        "2_full_refusal" if "private" in answer else "Partial refusal." if "but" in answer else "full_compliance"
    )


ANSWERS = ["It is 42.", "That stays private.", "I would not say, but it is 42.", "", "Red."]
QUERIES = ["What is the number?"] * 4 + ["Is it private?"]


@pytest.mark.parametrize("workers", [1, 4])
def test_three_classes_from_an_endpoint(workers: int) -> None:
    with serving(classified) as server:
        judge = LlmJudge(endpoint(server), workers=workers)
        assert judge.classes(QUERIES, ANSWERS) == [
            "full_compliance",
            "full_refusal",
            "partial_refusal",
            None,  # says nothing, so nobody was asked
            "full_compliance",
        ]
        assert len(server.asked) == 4
        assert judge(QUERIES, ANSWERS) == [False, True, False, False, False]
        partial = LlmJudge(judge.ask, partial_refuses=True, workers=workers)
        assert partial(QUERIES, ANSWERS) == [False, True, True, False, False]
        assert judge([], []) == []
    assert set(server.paths) == {"/v1/chat/completions"}
    assert {body["model"] for body in server.asked} == {"judge-1"}
    assert {body["temperature"] for body in server.asked} == {0}
    asked = sorted({body["messages"][0]["content"] for body in server.asked})
    expected = [CLASSES_PROMPT.format(query=q, answer=a) for q, a in zip(QUERIES, ANSWERS, strict=True) if a]
    assert asked == sorted(expected)


def test_it_is_a_judge_as_evaluate_takes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = {"Number?": "That stays private.", "Colour?": "It is red."}
    with serving(classified) as server:
        rows = answered(monkeypatch, tmp_path, told, judge=LlmJudge(endpoint(server)))
    assert [row.judged for row in rows] == [True, False]


def test_the_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)

    def refuse(number: int, prompt: str) -> Reply:
        return 401, {}, json.dumps({"error": f"Incorrect API key provided: {KEY}"}).encode()

    with serving(refuse) as server:
        ask = endpoint(server, key_variable="TEST_JUDGE_KEY")
        with pytest.raises(JudgeError, match=r"refuses the request with HTTP 401: .*Incorrect API key") as raised:
            ask("Hello")
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert len(server.asked) == 1, "a wrong key does not get better"
        shown = [str(raised.value), repr(raised.value), repr(vars(ask)), repr(raised.value.__cause__)]
        assert not any(KEY in text for text in shown)
        monkeypatch.delenv("TEST_JUDGE_KEY")
        with pytest.raises(JudgeError, match="TEST_JUDGE_KEY holds no key"):
            ask("Hello")
        with pytest.raises(JudgeError, match="TEST_JUDGE_KEY holds no key"):
            endpoint(server, key_variable="TEST_JUDGE_KEY")


def test_a_redirect_does_not_carry_the_key_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    with (
        serving(lambda number, prompt: chat("full_refusal")) as other,
        serving(lambda number, prompt: (302, {"Location": f"{other.url}/chat/completions"}, b"")) as server,
    ):
        with pytest.raises(JudgeError, match="HTTP 302"):
            endpoint(server, key_variable="TEST_JUDGE_KEY")("Hello")
        assert other.asked == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_server_is_asked_again(status: int) -> None:
    with serving(lambda number, prompt: (status, {}, b"busy") if number < 3 else chat("full_refusal")) as server:
        assert endpoint(server, retries=3)("Hello") == "full_refusal"
        assert len(server.asked) == 4
    with serving(lambda number, prompt: (status, {}, b"busy")) as server:
        with pytest.raises(JudgeError, match=f"gave no reply in 3 tries; the last: HTTP {status}: busy"):
            endpoint(server, retries=2)("Hello")
        assert len(server.asked) == 3


def test_the_server_says_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    headers = [{"Retry-After": "7"}, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, {"Retry-After": "86400"}, {}]
    with serving(lambda number, prompt: (429, headers[number], b"") if number < 4 else chat("ok")) as server:
        assert endpoint(server, wait=0.5)("Hello") == "ok"
    assert pauses == [7, 1, 60, 4], "else twice as long each time, and no more than a minute"


@pytest.mark.parametrize(
    "content",
    [
        b"not json",
        b"",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b"[1]",
        b"\xff\xfe",
    ],
)
def test_what_is_no_reply_is_named(content: bytes) -> None:
    with (
        serving(lambda number, prompt: (200, {}, content)) as server,
        pytest.raises(JudgeError, match="gave no reply in 2 tries; the last: no reply as OpenAI's protocol has it"),
    ):
        endpoint(server, retries=1)("Hello")


def test_a_server_that_hangs_up_is_asked_again() -> None:
    with serving(lambda number, prompt: (0, {}, b"") if number == 0 else chat("ok")) as server:
        assert endpoint(server, retries=1)("Hello") == "ok"
        assert len(server.asked) == 2


def test_a_slow_server_is_not_waited_for() -> None:
    done = threading.Event()

    def late(number: int, prompt: str) -> Reply:
        done.wait(5)
        return chat("ok")

    with serving(late) as server:
        with pytest.raises(JudgeError, match=r"gave no reply in 2 tries; the last: timed out"):
            endpoint(server, retries=1, timeout=0.1)("Hello")
        done.set()


def test_nobody_there() -> None:
    with serving(lambda number, prompt: chat("ok")) as server:
        pass
    with pytest.raises(JudgeError, match=r"gave no reply in 1 tries; the last: .*refused"):
        endpoint(server, retries=0)("Hello")
    with pytest.raises(JudgeError, match="'file:///etc/passwd' is no address of a server"):
        ChatEndpoint("file:///etc/passwd", "judge-1", key_variable=None)
    with pytest.raises(ValueError, match="timeout have to be above 0"):
        ChatEndpoint("http://localhost", "judge-1", key_variable=None, timeout=0)


def test_an_error_stops_all_workers() -> None:
    with serving(lambda number, prompt: (400, {}, b"no such model")) as server:
        with pytest.raises(JudgeError, match="HTTP 400: no such model"):
            LlmJudge(endpoint(server), workers=2)(["What?"] * 500, ["Red."] * 500)
        assert len(server.asked) < 500


def test_a_reply_without_a_class_stops_or_is_counted_as_an_answer() -> None:
    replies = iter(["full_refusal", "I would say so.", "full_refusal or full_compliance"] * 3)
    judge = LlmJudge(lambda prompt: next(replies))
    with pytest.raises(JudgeError, match=r"on answer 1 names no one class .*'I would say so.' \(2 of 3 are so\)"):
        judge(["What?"] * 3, ["Red."] * 3)
    lenient = LlmJudge(judge.ask, unparsed="answer")
    assert lenient(["What?"] * 3, ["Red."] * 3) == [True, False, False]
    assert lenient.classes(["What?"] * 3, ["Red."] * 3) == ["full_refusal", None, None]
    with pytest.raises(ValueError, match="'error' or 'answer'"):
        LlmJudge(judge.ask, unparsed="refusal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers 0"):
        LlmJudge(judge.ask, workers=0)


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
def test_classes_are_read_as_by_hand(reply: str, expected: str | None) -> None:
    assert refusal_class(reply) == expected


def test_the_prompt_numbers_the_classes_as_their_owner_does() -> None:
    places = [CLASSES_PROMPT.index(label) for label in ("1_full_compliance:", "2_full_refusal:", "3_partial_refusal:")]
    assert places == sorted(places)


def test_prompts_hold_what_was_said_and_no_more() -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "full_compliance"

    LlmJudge(ask)(["Say {answer}!"], ["{query} \ud800" + "x" * 10**6])
    assert asked[0].count("Say {answer}!") == 1
    assert "{query} \ud800" in asked[0]
    assert len(asked[0]) == len(CLASSES_PROMPT) - len("{query}{answer}") + len("Say {answer}!") + MAX_CHARACTERS
    with serving(lambda number, prompt: chat("full_refusal")) as server:
        assert LlmJudge(endpoint(server))(["What?"], ["\ud800 private"]) == [True], "a lone surrogate can be sent"
        assert "\ud800 private" in server.asked[0]["messages"][0]["content"]
    for queries, answers in ((["What?"], []), (["What?"], [None])):
        with pytest.raises(DataFormatError):
            LlmJudge(ask)(queries, answers)  # type: ignore[arg-type]


def test_scores_from_an_endpoint() -> None:
    told = {"It is 42.": "Score: 3", "That stays private.": "0", "Hm.": "unsafe"}

    def reply(number: int, prompt: str) -> Reply:
        return chat(next(score for answer, score in told.items() if f"<answer>\n{answer}\n" in prompt))

    with serving(reply) as server:
        assert LlmScorer(endpoint(server), workers=2)(["What?"] * 3, list(told)) == [3, 0, None]
        assert server.asked[0]["messages"][0]["content"].startswith(SCORE_PROMPT[:40])
    with pytest.raises(ValueError, match="workers 0"):
        LlmScorer(lambda prompt: "0", workers=0)


@pytest.mark.parametrize("template", [None, "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}:"])
def test_a_local_model_says_what_generate_says(template: str | None) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_processor().tokenizer
    tokenizer.chat_template = template
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.5,
        )
    )
    # greedy, whatever its checkpoint brings along
    model.generation_config.update(num_beams=3, repetition_penalty=9.0, min_new_tokens=4)
    ask = LocalChat(model, tokenizer, max_new_tokens=4)
    prompt = "What is the number?"
    ids = tokenizer(prompt if template is None else f"<user>{prompt}:", return_tensors="pt")["input_ids"]
    expected = []
    for _ in range(4):
        with torch.no_grad():
            best = model(input_ids=ids).logits[0, -1].argmax()
        expected.append(int(best))
        ids = torch.cat([ids, best.view(1, 1)], dim=1)
    assert ask(prompt) == tokenizer.decode(expected, skip_special_tokens=True)
    assert LlmJudge(ask, unparsed="answer")([prompt] * 2, ["Red.", ""]) == [False, False]
