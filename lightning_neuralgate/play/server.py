"""The local web page of `neuralgate play`: pictures stay in the memory of this process, and nothing is sent elsewhere."""

from __future__ import annotations

import json
import secrets
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from importlib.resources import files
from ipaddress import ip_address
from threading import Lock
from typing import Any

from lightning_neuralgate.errors import DataFormatError, MissingDependencyError, NeuralGateError
from lightning_neuralgate.play.page import Playground, render_page, render_picture
from lightning_neuralgate.play.pictures import AskedPicture, draw_picture, new_seed, open_picture
from lightning_neuralgate.runtime.text import printable

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise MissingDependencyError(
        "the page needs starlette and uvicorn: pip install 'lightning-neuralgate[play]'"
    ) from error

MAX_UPLOAD = 50 * 2**20
"""Bytes of an uploaded picture."""
_MAX_JSON = 2**16
_KEPT_PICTURES = 16
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Handler = Callable[[Request], Awaitable[Response]]


class PictureStore:
    """The last pictures of all visitors, in memory, by keys that cannot be guessed."""

    def __init__(self, size: int = _KEPT_PICTURES) -> None:
        self.size = size
        self._pictures: OrderedDict[str, AskedPicture] = OrderedDict()
        self._lock = Lock()

    def add(self, picture: AskedPicture) -> str:
        """Keep a picture and return its key; the oldest one makes room."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._pictures[key] = picture
            while len(self._pictures) > self.size:
                self._pictures.popitem(last=False)
        return key

    def get(self, key: object) -> AskedPicture:
        """Return a picture.

        Raises:
            DataFormatError: it is no longer there.
        """
        with self._lock:
            picture = self._pictures.get(str(key))
        if picture is None:
            raise DataFormatError("this picture is no longer in memory; draw or open it again")
        return picture


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def create_app(playground: Playground, host: str = "127.0.0.1") -> Starlette:
    """Return the web application.

    Args:
        playground: the model, and what the page shows.
        host: the address that it is served at. At a loopback address, requests under any other host name are refused, so that
            no foreign name can be made to point here (DNS rebinding).
    """
    store = PictureStore()

    async def page(request: Request) -> Response:
        return Response(render_page(playground), media_type="text/html")

    async def asset(request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        content = files("lightning_neuralgate.play").joinpath(name).read_text(encoding="utf-8")
        return Response(content, media_type="text/css" if name.endswith(".css") else "text/javascript")

    async def picture(request: Request) -> Response:
        return Response(store.get(request.path_params["key"]).png, media_type="image/png")

    async def draw(request: Request) -> Response:
        content = await _json(request)
        drawn = await run_in_threadpool(draw_picture, str(content.get("subject", "")), new_seed())
        return _shown(drawn)

    async def upload(request: Request) -> Response:
        name = printable(request.query_params.get("name", "")[:200], single_line=True) or "picture"
        content = await _body(request, MAX_UPLOAD)
        return _shown(await run_in_threadpool(open_picture, content, name))

    async def ask(request: Request) -> Response:
        content = await _json(request)
        about = store.get(content.get("picture"))
        question, form = str(content.get("question", "")), str(content.get("form", ""))
        return JSONResponse({"html": await run_in_threadpool(playground.answer, about, question, form)})

    def _shown(shown: AskedPicture) -> Response:
        key = store.add(shown)
        return JSONResponse({"key": key, "html": render_picture(shown, key)})

    routes = [
        Route("/", page),
        Route("/page.css", asset),
        Route("/page.js", asset),
        Route("/picture/{key}", _reporting(picture)),
        *(
            Route(f"/{name}", _reporting(post), methods=["POST"])
            for name, post in (("draw", draw), ("upload", upload), ("ask", ask))
        ),
    ]
    names = {"localhost", "127.0.0.1", "::1", host} if is_loopback(host) else None
    return Starlette(routes=routes, middleware=[Middleware(_Guard, names=names)])


class _Guard:
    """Refuse requests under foreign host names and those that another site's page makes, and add the security headers.

    Args:
        app: the application.
        names: host names under which it may be called; None for any.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                pairs = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *pairs]}
            await send(message)

        app = (
            self.app
            if self._allowed(Request(scope))
            else JSONResponse({"error": "requests of other sites are refused"}, 403)
        )
        await app(scope, receive, send_with_headers)

    def _allowed(self, request: Request) -> bool:
        try:
            known = self.names is None or request.url.hostname in self.names
        except ValueError:  # a host that is none
            return False
        site = request.headers.get("sec-fetch-site", "none")
        return known and (request.method == "GET" or site in ("same-origin", "none"))


def _reporting(handler: Handler) -> Handler:
    """Return a handler that reports the errors of this package."""

    async def reported(request: Request) -> Response:
        try:
            return await handler(request)
        except NeuralGateError as error:
            return JSONResponse({"error": printable(str(error))}, 400)

    return reported


async def _body(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise DataFormatError(f"the request is larger than {limit:,} bytes")
        parts.append(part)
    return b"".join(parts)


async def _json(request: Request) -> dict[str, Any]:
    try:
        content = json.loads(await _body(request, _MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise DataFormatError(f"the request is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataFormatError("the request is not a JSON object")
    return content


def serve(playground: Playground, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until it is interrupted.

    Args:
        playground: the model, and what the page shows.
        host: address to listen at.
        port: port; 0 for a free one.
        ready: called with the page's address as soon as it can be opened.

    Raises:
        DataFormatError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise DataFormatError(f"--host {host} --port {port}: {error.strerror or error}; choose others") from error
    with listener:
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listener.getsockname()[1]}/")
        config = uvicorn.Config(create_app(playground, host), log_level="warning", access_log=False)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
