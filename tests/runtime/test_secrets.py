from __future__ import annotations

import base64
import json
import time

import pytest

from lightning_neuralgate.runtime.secrets import without_secrets

KEY = 'sk-a/secret"of+the test'


@pytest.mark.parametrize(
    "spelling",
    [
        KEY,
        f"{KEY}\n",
        json.dumps(KEY),
        repr(f"Bearer {KEY}"),
        "https://host/v1?key=sk-a%2Fsecret%22of%2Bthe%20test",
        base64.b64encode(KEY.encode()).decode(),
    ],
)
def test_a_given_secret_is_cut_out_however_it_is_spelled(spelling: str) -> None:
    shown = without_secrets(f"no access with {spelling}!", f"{KEY}\n")
    assert "secret" not in shown
    assert base64.b64encode(KEY.encode()).decode()[:16] not in shown
    assert shown.startswith("no access with ")


def test_secrets_of_the_environment_and_of_addresses_are_cut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("MY_SECRET", "short")
    monkeypatch.setenv("MONKEYS", "plain value")
    text = "hf_abcdefgh short plain value https://me:pass@host/v1 https://tok3n@host Authorization: Bearer abcdefgh12345678"
    assert without_secrets(text) == (
        "(key) short plain value https://(key)@host/v1 https://(key)@host Authorization: Bearer (key)"
    )
    assert without_secrets("Basic compliance with everything") == "Basic compliance with everything"


@pytest.mark.parametrize("text", ["://" + "a" * 10**6, "Bearer " + "a" * 10**6, "://a" * 250_000, "Bearer " * 150_000])
def test_a_megabyte_takes_linear_time(text: str) -> None:
    started = time.process_time()
    without_secrets(text, "sk-1234")
    assert time.process_time() - started < 5
