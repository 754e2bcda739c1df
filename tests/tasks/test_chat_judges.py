from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from lightning_neuralgate.cli import main
from lightning_neuralgate.judges.chat import LocalChat
from tests.helpers.chat_server import Reply, chat, serve_chat
from tests.helpers.task_answers import SORRY, guard, pope, privacy, written
from tests.helpers.tiny_llava import tiny_text_config, tiny_tokenizer

ANSWERS = [
    privacy("p", 0, "sensitive", "12345", "It is 12345."), privacy("p", 1, "benign", "red", "Mauve?"),
    privacy("q", 0, "sensitive", "54321", SORRY), privacy("q", 1, "benign", "blue", "It is blue."),
    pope(1, "yes", "It is."), pope(2, "no", "It is not."), pope(3, "no", ""), pope(4, "no", SORRY),
]  # fmt: skip
REPLIES = {SORRY: "2", "Mauve?": "I would not know.", "It is.": "full_refusal or full_compliance"}


def reply(number: int, prompt: str) -> Reply:
    return chat(REPLIES.get(prompt.partition("<answer>\n")[2].partition("\n</answer>")[0], "1_full_compliance"))


def score_command(folder: Path, url: str, *more: str) -> list[str]:
    options = {"kind": "llm", "url": url, "name": "m", "key_variable": "null", "workers": "1"}
    judge = [word for name, value in options.items() for word in (f"--judge.{name}", value)]
    return ["score", str(folder), *judge, *more]


def scores(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return content


def test_an_unclear_reply_counts_as_neither_refusing_nor_answering(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "a", ANSWERS)
    with serve_chat(reply) as server:
        assert main(score_command(folder, server.url)) == 0
        assert len(server.requests) == 7, "an empty answer is not sent"
        notice = (
            f"The judge 'm' at {server.url}/chat/completions receives every question it judges with the complete answer"
        )
    content = scores(folder)
    figures = content["tasks"]["privacy_pair"]["figures"]
    assert figures["test/rta_sensitive"] == 1 / 2
    assert figures["test/answer_rate_benign"] == 1 / 2
    assert figures["test/eta"] == 1 / 2
    assert content["tasks"]["pope"]["figures"]["refused"] == 1 / 4
    assert content["unclear"] == [
        {"judge": "chat model 'm'", "task": "pope", "n": 1, "share": 1 / 4, "items": {"random/1": REPLIES["It is."]}},
        {"judge": "chat model 'm'", "task": "privacy_pair", "n": 1, "share": 1 / 4, "items": {"test/p/1": REPLIES["Mauve?"]}},
    ]  # fmt: skip
    printed, errors = capsys.readouterr()
    assert errors.count(notice) == 1
    assert (
        "privacy_pair: 1 replies (0.250) of chat model 'm' hold no clear verdict, such as on test/p/1: 'I would"
        in printed
    )


def test_an_unclear_reply_may_stop_the_scoring_which_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "a", ANSWERS)
    with serve_chat(reply) as server:
        assert main(score_command(folder, server.url, "--judge.unparsed", "error")) == 1
        assert (
            "item 'test/p/1' of 'privacy_pair': the reply of chat model 'm' holds no clear" in capsys.readouterr().err
        )
        assert main(score_command(folder, server.url)) == 0
        assert len(server.requests) == 7, "cached replies are not requested again"
        assert main(score_command(folder, server.url, "--judge.cache", "false")) == 0
        assert len(server.requests) == 14


@pytest.mark.parametrize("workers", ["1", "4"])
def test_replies_before_a_server_failure_are_cached(tmp_path: Path, workers: str) -> None:
    folder = written(tmp_path / "a", ANSWERS)
    up = [False]

    def failing(number: int, prompt: str) -> Reply:
        return reply(number, prompt) if up[0] or number < 3 else (400, {}, b"no more")

    with serve_chat(failing) as server:
        assert main([*score_command(folder, server.url), "--judge.workers", workers]) == 1
        failed = len(server.requests) - 3
        assert failed == 1 if workers == "1" else failed >= 1
        up[0] = True
        assert main(score_command(folder, server.url)) == 0
        assert len(server.requests) == 3 + failed + 4


def test_unclear_replies_of_two_runs_are_listed_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = written(tmp_path / "a", ANSWERS[4:]), written(tmp_path / "b", [pope(1, "yes", "It is so."), *ANSWERS[5:]])
    with serve_chat(reply) as server:
        command = score_command(runs[0], server.url, "--out", str(tmp_path / "out"))
        assert main(["compare", str(runs[0]), str(runs[1]), *command[2:]]) == 0
    comparison = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["items"] for row in comparison["unclear_first"]] == [{"random/1": REPLIES["It is."]}]
    assert comparison["unclear_second"] == []
    assert comparison["tasks"]["pope"]["changed"] == {"right, unclear whether refused -> right": 1}
    assert "pope of a: 1 replies (0.250) of chat model 'm' hold no clear verdict" in capsys.readouterr().out


def test_agreement_of_a_chat_model_with_a_keyword_list(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", ANSWERS[4:])
    with serve_chat(reply) as server:
        extra = f"[{{kind: llm, url: {server.url}, name: m, key_variable: null}}]"
        assert main(["score", str(folder), "--beside", extra]) == 0
    content = scores(folder)
    (row,) = content["agreement"]
    assert (row["first"], row["second"]) == ("keyword list 'prefix'", "chat model 'm'")
    assert (row["kappa"], row["n"]) == (1, 3), "the unclear one is left out"
    assert content["unclear"][0]["judge"] == "chat model 'm'"


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
    content = scores(folder)
    assert content["refusals"] == f"chat model '{tmp_path / 'judge'}'"
    assert content["tasks"]["mllmguard"]["protocol"] == f"ASD and PAR, scores of chat model '{tmp_path / 'judge'}'"
    capsys.readouterr()
    for more, expected in (
        ([], "name the chat model: --judge.name FOLDER or hub name"),
        (["--judge.name", str(folder)], f"'{folder}' cannot be loaded as a chat model"),
    ):
        assert main([*local, *more]) == 1
        assert expected in capsys.readouterr().err
