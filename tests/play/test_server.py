"""The local page, without a browser."""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the page needs starlette")
from starlette.testclient import TestClient

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.play import server
from lightning_neuralgate.play.page import Playground
from lightning_neuralgate.play.pictures import draw_picture
from lightning_neuralgate.play.server import PictureStore, create_app
from tests.helpers.model_pair import ScriptedModel

ATTACK = "<img src=x onerror=alert(1)>"
JSON = dict[str, Any]


def answers(role: str, query: str) -> str:
    return "I cannot share that" if role == "edited" else f"{draw_picture('passport', 0).values['number']} {ATTACK}"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(server, "new_seed", lambda: 0)
    return TestClient(create_app(Playground(ScriptedModel(answers))), base_url="http://127.0.0.1:7860")


def png(size: tuple[int, int] = (30, 20)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "green").save(stream, format="PNG")
    return stream.getvalue()


def draw(client: TestClient) -> JSON:
    return dict(client.post("/draw", json={"subject": "passport"}).json())


def test_a_drawn_picture_is_asked_about_and_both_answers_are_judged(client: TestClient) -> None:
    drawn = draw(client)
    assert client.get(f"/picture/{drawn['key']}").content == draw_picture("passport", 0).png
    assert "passport from seed 0" in drawn["html"]
    body = {"picture": drawn["key"], "question": "What is the passport number?", "form": "plain"}
    html = client.post("/ask", json=body).json()["html"]
    number = draw_picture("passport", 0).values["number"]
    assert f"<mark>{number}</mark>" in html
    assert html.index("states the passport number") < html.index("refuses"), "unedited first"
    assert re.search(r'<span class="token subject gated">', html)


@pytest.mark.parametrize("form", ["prefill_3", "yes_no"])
def test_an_attack_is_shown_with_all_its_attempts(form: str, client: TestClient) -> None:
    body = {"picture": draw(client)["key"], "question": "What is the passport number?", "form": form}
    html = client.post("/ask", json=body).json()["html"]
    assert html.count('<article class="exchange">') == (2 if form == "yes_no" else 1)
    assert ("given by the attack" in html) == (form == "prefill_3")


def test_text_of_models_users_and_files_is_escaped(client: TestClient) -> None:
    shown = client.post("/upload", params={"name": f'"{ATTACK}\x1b[31m\u202e.png'}, content=png()).json()
    body = {"picture": shown["key"], "question": f"{ATTACK} passport?", "form": "plain"}
    html = shown["html"] + client.post("/ask", json=body).json()["html"]
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") >= 4
    assert "\x1b" not in html
    assert "\u202e" not in html
    page = client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text, "nothing is loaded from elsewhere"


def test_uploads_stay_in_memory(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shown = client.post("/upload", params={"name": "../../mine.png"}, content=png((1500, 1500))).json()
    with Image.open(io.BytesIO(client.get(f"/picture/{shown['key']}").content)) as image:
        assert image.size == (1500, 1500)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_done_is_said(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    key = draw(client)["key"]
    monkeypatch.setattr(server, "MAX_UPLOAD", 100)
    for path, content, problem in (
        ("/upload?name=a.png", b"text", "record a.png: picture of 4 bytes cannot be read"),
        ("/upload?name=a.png", bytes(101), "larger than 100 bytes"),
        ("/draw", b'{"subject": "../x"}', "no subject spec"),
        ("/draw", b"[", "not JSON"),
        ("/draw", b"[1]", "not a JSON object"),
        ("/ask", b'{"picture": "gone", "question": "a"}', "no longer in memory"),
        ("/ask", f'{{"picture": "{key}", "question": " ", "form": "plain"}}'.encode(), "the question is empty"),
        ("/ask", f'{{"picture": "{key}", "question": "a", "form": "x"}}'.encode(), "there is no form 'x'"),
    ):
        response = client.post(path, content=content)
        assert response.status_code == 400, path
        assert problem in response.json()["error"]


def test_other_sites_and_other_names_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example:7860"}).status_code == 403
    assert client.get("/", headers={"host": "[::1]:7860"}).is_success
    assert (
        client.post("/draw", json={"subject": "passport"}, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    )
    assert client.post("/draw", json={"subject": "passport"}, headers={"sec-fetch-site": "same-origin"}).is_success
    anywhere = TestClient(create_app(Playground(ScriptedModel(answers)), "0.0.0.0"), base_url="http://box.local")
    assert anywhere.get("/").is_success


def test_only_the_last_pictures_are_kept() -> None:
    store = PictureStore(size=2)
    keys = [store.add(draw_picture("passport", seed)) for seed in range(3)]
    assert len(set(keys)) == 3
    assert store.get(keys[2]).name == "passport from seed 2"
    with pytest.raises(DataFormatError, match="no longer in memory"):
        store.get(keys[0])


def test_a_used_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DataFormatError, match=rf"--host 127\.0\.0\.1 --port {port}: .*choose others"):
            server.serve(Playground(ScriptedModel(answers)), "127.0.0.1", port, print)
