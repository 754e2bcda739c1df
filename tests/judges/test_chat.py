"""Chat models behind a stub endpoint, in this process, and in the cache."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from lightning_neuralgate.errors import JudgeError, MissingDependencyError
from lightning_neuralgate.judges.chat import CachedChat, ChatEndpoint, LocalChat
from lightning_neuralgate.judges.llm import LlmJudge
from tests.helpers.chat_server import Reply, Server, chat, serve_chat
from tests.helpers.tiny_llava import tiny_text_config, tiny_tokenizer

KEY = "sk-a-secret-of-the-test"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before retries, which take no time. The environment holds a key."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    return pauses


def endpoint(server: Server, **options: Any) -> ChatEndpoint:
    return ChatEndpoint(server.url, "judge-1", **{"key_variable": None, "timeout": 5, **options})


def test_a_reply_from_an_endpoint() -> None:
    with serve_chat(lambda number, prompt: chat(f"{prompt}!")) as server:
        assert endpoint(server, max_tokens=7)("Hello") == "Hello!"
        assert ChatEndpoint(server.url + "/", "judge-1", key_variable=None)("Bye") == "Bye!"
    assert set(server.paths) == {"/v1/chat/completions"}
    message = {"role": "user", "content": "Hello"}
    assert server.requests[0] == {"model": "judge-1", "messages": [message], "temperature": 0, "max_tokens": 7}


def test_the_identity_names_everything_a_reply_depends_on() -> None:
    chat_model = ChatEndpoint("http://localhost:1/v1/", "m", key_variable=None, max_tokens=7)
    assert chat_model.identity == "http://localhost:1/v1/chat/completions m 7"


def test_the_key_is_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    padding = "x" * (300 - len("Incorrect key: ") - 5)  # the excerpt ends within the second key

    def reject(number: int, prompt: str) -> Reply:
        return 401, JSON, json.dumps({"error": {"message": f"Incorrect key: {KEY}{padding}{KEY}"}}).encode()

    with serve_chat(reject) as server:
        chat_model = endpoint(server, key_variable="TEST_JUDGE_KEY")
        with pytest.raises(JudgeError, match=r"rejects the request with HTTP 401: .*Incorrect key: \(key\)") as raised:
            chat_model("Hello")
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert len(server.requests) == 1, "a wrong key is not retried"
        error = raised.value
        assert error.__cause__ is error.__context__ is None, "openai's error holds the request"
        shown = [str(error), repr(error), *traceback.format_exception(error), repr(vars(chat_model))]
        shown += [repr(vars(chat_model._client)), *(record.getMessage() for record in caplog.records)]
        assert not [text for text in shown if KEY[:5] in text]
        assert f"the judge 'judge-1' at {server.url}/chat/completions" in str(error)
        assert "check key, model name and server" in str(error)


def test_the_key_is_never_shown_when_the_connection_fails() -> None:
    with serve_chat(lambda number, prompt: (0, {}, b"")) as server:
        with pytest.raises(JudgeError, match="gave no reply in 2 tries") as raised:
            endpoint(server, key_variable="TEST_JUDGE_KEY", retries=1)("Hello")
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("key", [None, "", f"{KEY}\n", f"{KEY} x", f"{KEY}\xe9"])
def test_a_missing_or_malformed_key_is_an_error_without_the_key(
    key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_chat(lambda number, prompt: chat("ok")) as server:
        chat_model = endpoint(server, key_variable="TEST_JUDGE_KEY")
        monkeypatch.delenv("TEST_JUDGE_KEY") if key is None else monkeypatch.setenv("TEST_JUDGE_KEY", key)
        for call in (lambda: chat_model("Hello"), lambda: endpoint(server, key_variable="TEST_JUDGE_KEY")):
            with pytest.raises(JudgeError, match="TEST_JUDGE_KEY holds no key for the judge 'judge-1' at") as raised:
                call()
            assert KEY not in str(raised.value)
        assert server.requests == []


@pytest.mark.parametrize("key", [KEY, "gsk_1234567890abcdef", "GSK9f8e7d6c5b4a"])
def test_a_key_in_the_place_of_its_variable_is_not_shown(key: str) -> None:
    with pytest.raises(JudgeError, match="holds no key for the judge") as raised:
        ChatEndpoint("http://localhost:1/v1", "judge-1", key_variable=key)
    assert key not in str(raised.value)


def test_a_reply_that_repeats_the_key_is_cut_and_cached_without_it(tmp_path: Path) -> None:
    with serve_chat(lambda number, prompt: chat(f"full_refusal {KEY} {json.dumps(KEY)}")) as server:
        chat_model = CachedChat(endpoint(server, key_variable="TEST_JUDGE_KEY"), "a", tmp_path)
        assert chat_model("Hello") == 'full_refusal (key) "(key)"'
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]


def test_a_model_with_code_of_its_own_is_refused_without_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[Any] = []

    def answer(text: Any = "") -> str:
        prompts.append(text)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    (tmp_path / "own.py").write_text("raise SystemExit('the code ran')")
    with pytest.raises(JudgeError, match="cannot be loaded as a chat model"):
        LocalChat.load(tmp_path)
    assert prompts == []


@pytest.mark.parametrize("key_variable", [None, "TEST_JUDGE_KEY"])
def test_nothing_else_from_the_environment_is_sent(key_variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", f"environment-{name}")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: environment-team\nAuthorization: environment-header")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serve_chat(lambda number, prompt: chat("ok")) as server:
        assert endpoint(server, key_variable=key_variable)("Hello") == "ok"
    (headers,) = server.headers
    assert "environment" not in repr(headers)
    assert headers.get("Authorization") == (f"Bearer {KEY}" if key_variable else None)
    assert {name.lower() for name in headers} - {"authorization"} == {
        "host", "accept", "accept-encoding", "connection", "content-length", "content-type",
    }  # fmt: skip


def test_a_redirect_does_not_carry_the_key_away() -> None:
    with (
        serve_chat(lambda number, prompt: chat("full_refusal")) as other,
        serve_chat(lambda number, prompt: (307, {"Location": f"{other.url}/chat/completions"}, b"")) as server,
    ):
        with pytest.raises(JudgeError, match="HTTP 307"):
            endpoint(server, key_variable="TEST_JUDGE_KEY")("Hello")
        assert other.requests == []
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_server_is_retried(status: int) -> None:
    with serve_chat(lambda number, prompt: (status, {}, b"busy") if number < 3 else chat("full_refusal")) as server:
        assert endpoint(server, retries=3)("Hello") == "full_refusal"
        assert len(server.requests) == 4
    with serve_chat(lambda number, prompt: (status, {}, b"busy")) as server:
        with pytest.raises(JudgeError, match=f"rejects the request with HTTP {status}: busy"):
            endpoint(server, retries=2)("Hello")
        assert len(server.requests) == 3


def test_pauses_grow_or_follow_retry_after(pauses: list[float]) -> None:
    headers = [{}, {"Retry-After": "7"}, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, {}]
    with serve_chat(lambda number, prompt: (429, headers[number], b"") if number < 4 else chat("ok")) as server:
        assert endpoint(server)("Hello") == "ok"
    assert pauses[1] == 7
    assert pauses[0] <= 0.5 < pauses[2] <= 2 < pauses[3] <= 4, "half a second, doubled each time, less some jitter"


def test_a_retry_after_of_a_day_is_not_waited_for(pauses: list[float]) -> None:
    with serve_chat(lambda number, prompt: (429, {"Retry-After": "86400"}, b"busy")) as server:
        with pytest.raises(JudgeError, match="HTTP 429"):
            endpoint(server)("Hello")
        assert (len(server.requests), pauses) == (1, [])


@pytest.mark.parametrize(
    "content",
    [
        b"not json",
        b"",
        b"{}",
        b'{"choices": []}',
        b'{"choices": {}}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": 1}}]}',
        b"[1]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("headers", [{}, JSON, {"Content-Type": "text/html"}])
def test_a_malformed_reply_is_an_error(content: bytes, headers: dict[str, str]) -> None:
    with (
        serve_chat(lambda number, prompt: (200, headers, content)) as server,
        pytest.raises(
            JudgeError, match=r"judge-1.* sent a reply without choices.*check that it speaks OpenAI's protocol"
        ),
    ):
        endpoint(server, retries=1)("Hello")


def test_a_closed_connection_is_retried() -> None:
    with serve_chat(lambda number, prompt: (0, {}, b"") if number == 0 else chat("ok")) as server:
        assert endpoint(server, retries=1)("Hello") == "ok"
        assert len(server.requests) == 2


def test_a_slow_server_times_out() -> None:
    done = threading.Event()

    def late(number: int, prompt: str) -> Reply:
        done.wait(5)
        return chat("ok")

    with serve_chat(late) as server:
        with pytest.raises(JudgeError, match=r"gave no reply in 2 tries: timed out"):
            endpoint(server, retries=1, timeout=0.1)("Hello")
        done.set()


def test_an_unreachable_server_is_an_error() -> None:
    with serve_chat(lambda number, prompt: chat("ok")) as server:
        pass
    expected = rf"the judge 'judge-1' at {server.url}/chat/completions gave no reply in 1 tries: .*refused; check that"
    with pytest.raises(JudgeError, match=expected):
        endpoint(server, retries=0)("Hello")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "localhost:8000/v1",
        "http://",
        "http://user:sk-secret@localhost/v1",
        "https://sk-secret@localhost/v1",
        "http://localhost/v1?key=sk-secret",
        "http://localhost/v1#sk-secret",
        "http://localhost /v1",
        "http://localhost/v1\nX: sk-secret",
        "http://localhost:port/v1",
        "http://localhost:99999999/v1",
        "http://[::1/v1",
    ],
)
def test_a_bad_address_is_an_error_that_shows_no_password(url: str) -> None:
    with pytest.raises(
        JudgeError, match=re.escape("base_url (--judge.url) is not the address of an endpoint")
    ) as raised:
        ChatEndpoint(url, "judge-1", key_variable=None)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"max_tokens": 0}, {"retries": -1}])
def test_numbers_out_of_range_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="have to be above 0, and retries at least 0"):
        ChatEndpoint("http://localhost", "judge-1", key_variable=None, **options)


def test_a_missing_openai_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match=re.escape("pip install 'lightning-neuralgate[judge]'")):
        ChatEndpoint("http://localhost", "judge-1", key_variable=None)


def test_a_lone_surrogate_can_be_sent() -> None:
    with serve_chat(lambda number, prompt: chat("full_refusal")) as server:
        assert endpoint(server)("\ud800 priv\xe4te") == "full_refusal"
    assert server.prompts == ["? priv\xe4te"]


def test_replies_are_cached_per_model(tmp_path: Path) -> None:
    first = CachedChat(lambda prompt: prompt.upper(), "a", tmp_path)
    assert (first("one \ud800"), first("two")) == ("ONE \ud800", "TWO")
    again = CachedChat(lambda prompt: "new", "a", tmp_path)
    assert (again("one \ud800"), again("two"), again("three")) == ("ONE \ud800", "TWO", "new")
    assert CachedChat(lambda prompt: "", "a", tmp_path)("three") == "new"
    assert CachedChat(lambda prompt: "other", "b", tmp_path)("three") == "other"


def test_replies_are_cached_from_several_threads(tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(40)]
    cached = CachedChat(lambda prompt: prompt.upper(), "a", tmp_path)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(cached, prompts)) == [prompt.upper() for prompt in prompts]
    again = CachedChat(lambda prompt: "new", "a", tmp_path)
    assert [again(prompt) for prompt in prompts] == [prompt.upper() for prompt in prompts]


@pytest.mark.parametrize("template", [None, "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}:"])
def test_a_local_model_decodes_greedily(template: str | None) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    model = LlamaForCausalLM(tiny_text_config(len(tokenizer), layers=2))
    # the checkpoint's own generation settings do not apply
    model.generation_config.update(num_beams=3, repetition_penalty=9.0, min_new_tokens=4)
    chat_model = LocalChat(model, tokenizer, max_new_tokens=4)
    prompt = "What is the number?"
    ids = tokenizer(prompt if template is None else f"<user>{prompt}:", return_tensors="pt")["input_ids"]
    expected = []
    for _ in range(4):
        with torch.no_grad():
            best = model(input_ids=ids).logits[0, -1].argmax()
        expected.append(int(best))
        ids = torch.cat([ids, best.view(1, 1)], dim=1)
    assert chat_model(prompt) == tokenizer.decode(expected, skip_special_tokens=True)
    assert LlmJudge(chat_model, unparsed="answer")([prompt] * 2, ["Red.", ""]) == [False, False]
