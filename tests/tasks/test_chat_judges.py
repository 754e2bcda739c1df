"""Chat models as judges of stored answers, on the command line: what they cannot say clearly, and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from lightning_neuralgate.cli import main
from lightning_neuralgate.judges.chat import LocalChat
from lightning_neuralgate.kept_replies import KeptReplies
from tests.helpers.task_answers import SORRY, guard, pope, privacy, written
from tests.helpers.tiny_llava import tiny_text_config, tiny_tokenizer
from tests.judges.test_llm import Reply, chat, serving

ANSWERS = [
    privacy("p", 0, "sensitive", "12345", "It is 12345."), privacy("p", 1, "benign", "red", "Mauve?"),
    privacy("q", 0, "sensitive", "54321", SORRY), privacy("q", 1, "benign", "blue", "It is blue."),
    pope(1, "yes", "Yes."), pope(2, "no", "No."), pope(3, "no", ""), pope(4, "no", SORRY),
]  # fmt: skip
SAID = {SORRY: "2", "Mauve?": "I would not know.", "Yes.": "full_refusal or full_compliance"}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def reply(number: int, prompt: str) -> Reply:
    return chat(SAID.get(prompt.partition("<answer>\n")[2].partition("\n</answer>")[0], "1_full_compliance"))


def words(folder: Path, url: str, *more: str) -> list[str]:
    options = {"kind": "llm", "url": url, "name": "m", "key_variable": "null", "workers": "1"}
    told = [word for name, value in options.items() for word in (f"--judge.{name}", value)]
    return ["score", str(folder), *told, *more]


def scores(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return told


def test_what_a_judge_says_unclearly_neither_refuses_nor_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "a", ANSWERS)
    with serving(reply) as server:
        assert main(words(folder, server.url)) == 0
        assert len(server.asked) == 7, "nobody is asked about an empty answer"
    told = scores(folder)
    found = told["tasks"]["privacy_pair"]["figures"]
    assert (found["test/rta_sensitive"], found["test/answer_rate_benign"], found["test/eta"]) == (1 / 2, 1 / 2, 1 / 2)
    assert told["tasks"]["pope"]["figures"]["refused"] == 1 / 4
    assert told["unclear"] == [
        {"judge": "chat model 'm'", "task": "pope", "n": 1, "share": 1 / 4, "items": {"random/1": SAID["Yes."]}},
        {"judge": "chat model 'm'", "task": "privacy_pair", "n": 1, "share": 1 / 4, "items": {"test/p/1": SAID["Mauve?"]}},
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert (
        "privacy_pair: 1 replies (0.250) of chat model 'm' hold no clear verdict, such as on test/p/1: 'I would"
        in printed
    )


def test_an_unclear_reply_may_stop_and_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "a", ANSWERS)
    with serving(reply) as server:
        assert main(words(folder, server.url, "--judge.unparsed", "error")) == 1
        assert (
            "item 'test/p/1' of 'privacy_pair': the reply of chat model 'm' holds no clear" in capsys.readouterr().err
        )
        assert main(words(folder, server.url)) == 0
        assert len(server.asked) == 7, "what was said before is not asked again"
        assert main(words(folder, server.url, "--judge.cache", "false")) == 0
        assert len(server.asked) == 14


def test_what_was_judged_before_a_server_failed_is_kept(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", ANSWERS)
    up = [False]

    def failing(number: int, prompt: str) -> Reply:
        return reply(number, prompt) if up[0] or number < 3 else (400, {}, b"no more")

    with serving(failing) as server:
        assert main(words(folder, server.url)) == 1
        up[0] = True
        assert main(words(folder, server.url)) == 0
        assert len(server.asked) == 3 + 1 + 4


def test_two_runs_tell_apart_what_is_unclear_in_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = written(tmp_path / "a", ANSWERS[4:]), written(tmp_path / "b", [pope(1, "yes", "Yes, yes."), *ANSWERS[5:]])
    with serving(reply) as server:
        command = words(runs[0], server.url, "--out", str(tmp_path / "out"))
        assert main(["compare", str(runs[0]), str(runs[1]), *command[2:]]) == 0
    told = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["items"] for row in told["unclear_first"]] == [{"random/1": SAID["Yes."]}]
    assert told["unclear_second"] == []
    assert told["tasks"]["pope"]["changed"] == {"right, unclear whether refused -> right": 1}
    assert "pope of a: 1 replies (0.250) of chat model 'm' hold no clear verdict" in capsys.readouterr().out


def test_a_chat_model_beside_a_list(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", ANSWERS[4:])
    with serving(reply) as server:
        beside = f"[{{kind: llm, url: {server.url}, name: m, key_variable: null}}]"
        assert main(["score", str(folder), "--beside", beside]) == 0
    told = scores(folder)
    (row,) = told["agreement"]
    assert (row["first"], row["second"]) == ("keyword list 'prefix'", "chat model 'm'")
    assert (row["kappa"], row["n"]) == (1, 3), "the one that was not clear is left out"
    assert told["unclear"][0]["judge"] == "chat model 'm'"


def test_replies_are_kept_for_each_judge_and_survive_half_a_line(tmp_path: Path) -> None:
    kept = KeptReplies(lambda prompt: prompt.upper(), "a", tmp_path)
    assert (kept("one \ud800"), kept("two")) == ("ONE \ud800", "TWO")
    content = kept.file.read_bytes()
    kept.file.write_bytes(content[:-9])
    again = KeptReplies(lambda prompt: "new", "a", tmp_path)
    assert (again("one \ud800"), again("two"), again("three")) == ("ONE \ud800", "new", "new")
    assert KeptReplies(lambda prompt: "", "a", tmp_path)("three") == "new"
    assert KeptReplies(lambda prompt: "other", "b", tmp_path)("three") == "other"


def test_a_local_chat_model_judges_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    model = LlamaForCausalLM(tiny_text_config(len(tokenizer), layers=1))
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    prompt = "Does it refuse?"
    assert LocalChat.load(tmp_path / "judge")(prompt) == LocalChat(model, tokenizer)(prompt)
    folder = written(tmp_path / "a", [*ANSWERS, guard("privacy", 1, "12345", "It is 12345.")])
    local = ["score", str(folder), "--judge.kind", "local", "--judge.guard", "true"]
    assert main([*local, "--judge.name", str(tmp_path / "judge")]) == 0
    told = scores(folder)
    assert told["refusals"] == f"chat model '{tmp_path / 'judge'}'"
    assert told["tasks"]["mllmguard"]["protocol"] == f"ASD and PAR, scores of chat model '{tmp_path / 'judge'}'"
    capsys.readouterr()
    for more, expected in (
        ([], "name the chat model: --judge.name FOLDER or hub name"),
        (["--judge.name", str(folder)], f"'{folder}' cannot be loaded as a language model that judges"),
    ):
        assert main([*local, *more]) == 1
        assert expected in capsys.readouterr().err
