"""The page of `neuralgate play` in headless Chromium: mouse, keyboard, narrow screen, hostile text."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the page needs starlette")
pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
import uvicorn
from playwright import sync_api

from lightning_neuralgate.play.page import Playground
from lightning_neuralgate.play.pictures import draw_picture
from lightning_neuralgate.play.server import create_app
from tests.helpers.browser import PATIENCE_MS, chromium, serious_findings
from tests.helpers.model_pair import ScriptedModel

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=\"document.title='taken over'\"><script>document.title='taken over'</script>"


def answers(role: str, query: str) -> str:
    if "hostile" in query:
        return HOSTILE
    return "I'm sorry, I can't tell you that." if role == "edited" else f"The passport number is {NUMBER}."


NUMBER = draw_picture("passport", 0).values["number"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    patch = pytest.MonkeyPatch()
    patch.setattr("lightning_neuralgate.play.server.new_seed", lambda: 0)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(Playground(ScriptedModel(answers))), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)
    patch.undo()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page with a drawn passport; afterwards nothing must have been loaded from elsewhere, or failed in a script."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    page = context.new_page()
    elsewhere: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: None if request.url.startswith(address) else elsewhere.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#picture img")
    yield page
    assert page.title() == "Neural Gate playground"
    assert not elsewhere
    assert not problems
    context.close()


def verdicts(page: Any) -> list[str]:
    page.wait_for_selector(".verdict")
    return list(page.locator(".verdict").all_inner_texts())


def test_a_click_on_a_question_shows_both_answers_and_marks_the_leak(page: Any, tmp_path: Path) -> None:
    page.click(".sensitive button:has-text('passport number')")
    assert verdicts(page) == ["states the passport number", "refuses"]
    assert page.inner_text("mark") == NUMBER
    assert page.locator(".token.subject.gated").count() == 1
    boxes = [page.locator(".answer").nth(place).bounding_box() for place in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"], "next to each other"
    page.screenshot(path=tmp_path / "wide.png", full_page=True)
    with Image.open(tmp_path / "wide.png") as shot:
        assert len(shot.convert("RGB").getcolors(2**24) or ()) > 100
    plain = page.inner_text(".prompt")
    page.select_option("#form", "role_play")
    page.click("#ask button")
    sync_api.expect(page.locator(".prompt")).not_to_have_text(plain)
    assert plain.removeprefix("user ") in page.inner_text(".prompt"), "a story in front of the question"
    page.click("#draw")
    sync_api.expect(page.locator(".verdict")).to_have_count(0)


def test_the_keyboard_is_enough(page: Any) -> None:
    page.focus("#subject")
    reached = []
    for _ in range(30):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.dataset.question || ''"))
        if reached[-1] == "question":
            break
        page.keyboard.press("Tab")
    assert {"subject", "draw", "file", "question"} <= set(reached)
    assert any("passport" in one for one in reached), "the quick questions"
    page.keyboard.type("What is the passport number?")
    page.keyboard.press("Enter")
    assert verdicts(page) == ["states the passport number", "refuses"]
    page.fill("#question", "   ")
    page.keyboard.press("Enter")
    page.wait_for_selector("#status.error")
    assert "the question is empty" in page.inner_text("#status")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_sideways_scrolling(scheme: str, page: Any, tmp_path: Path) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    page.fill("#question", "hostile " + "x" * 300)
    page.keyboard.press("Enter")
    verdicts(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    boxes = [page.locator(".answer").nth(place).bounding_box() for place in range(2)]
    assert boxes[0]["y"] < boxes[1]["y"], "one below the other"
    assert page.locator(".answer").first.is_visible()
    assert page.evaluate("window.scrollY > 0"), "the answers are scrolled into view"
    page.screenshot(path=tmp_path / f"narrow-{scheme}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_serious_findings(scheme: str, page: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.click(".sensitive button:has-text('passport number')")
    verdicts(page)
    assert serious_findings(page) == []


def test_hostile_text_and_file_names_are_shown_as_text(page: Any, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), "navy").save(stream, format="PNG")
    name = "\"><img src=x onerror=document.title='taken over'>.png"
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": stream.getvalue()})
    sync_api.expect(page.locator("figcaption")).to_have_text(name)
    page.fill("#question", f"hostile {HOSTILE}")
    page.keyboard.press("Enter")
    verdicts(page)
    assert page.locator(".text").all_inner_texts() == [HOSTILE, HOSTILE]
    assert page.locator("#answers img, #answers script, figcaption img").count() == 0
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    page.wait_for_selector("#status.error")
    assert "notes.txt" in page.inner_text("#status")
