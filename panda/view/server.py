"""The server of the viewer: it answers on this machine alone, and only for the slides of its list."""

from __future__ import annotations

import hmac
import json
import re
import secrets
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, cast

from panda.errors import PandaError
from panda.view.open_slides import OpenSlides
from panda.view.opened_slide import Layer, OpenedSlide
from panda.view.slide_list import SlideList

HOST = "127.0.0.1"
_ASSETS = Path(__file__).parent / "assets"
_PAGES = {
    "": ("view.html", "text/html; charset=utf-8"),
    "view.css": ("view.css", "text/css; charset=utf-8"),
    "pyramid.js": ("pyramid.js", "text/javascript; charset=utf-8"),
    "view.js": ("view.js", "text/javascript; charset=utf-8"),
}
_OF_SLIDE = re.compile(r"(\d{1,9})/(slide\.json|view\.jpg|(slide|map|label)/(\d{1,2})/(\d{1,6})_(\d{1,6}))", re.ASCII)
_NAMES = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.ASCII)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_WORKERS = 8
"""Tiles that are made at a time, which bounds the memory."""
_MOST_SAID = 1000


class Answer(NamedTuple):
    """What a request gets: its status, data, type, and whether the browser may keep it until the server ends."""

    status: HTTPStatus
    data: bytes
    kind: str = "text/plain; charset=utf-8"
    keep: bool = False


class ViewServer(ThreadingHTTPServer):
    """Serves the pages and tiles of slides on the loopback interface, one thread for each connection.

    Every address begins with a key, which only the terminal and a private file for the browser have. So no other user
    of the machine, and no page of another site, can read slides.

    Args:
        listed: The slides.
        slides: Folder with slides that have moved; None for none.
        port: The port; 0 for a free one.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, listed: SlideList, slides: Path | None = None, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.key = secrets.token_urlsafe(12)
        self.listed = listed
        self.open_slides = OpenSlides(lambda number: self._open(number, slides))
        self.workers = threading.BoundedSemaphore(_WORKERS)
        self._said: set[str] = set()

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.key}/"

    def _open(self, number: int, slides: Path | None) -> OpenedSlide:
        one = self.listed.slides[number]
        opened = OpenedSlide(one, slides, self.listed.labels.get(one.slide_id))
        for fault in opened.faults:
            self.report(f"{one.slide_id}: {fault}")
        return opened

    def report(self, message: str) -> None:
        """Print a fault to the terminal, once."""
        if message not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(message)
            print(message, file=sys.stderr, flush=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over connections that the browser has closed; print other errors."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            self.report(f"a request failed: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Free the port and close the slides."""
        self.server_close()
        self.open_slides.close()


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "panda", ""
    protocol_version = "HTTP/1.1"
    timeout = 60  # of an idle connection, in s

    def do_GET(self) -> None:
        answer = self._answer()
        self.send_response(answer.status)
        headers = {
            "Content-Type": answer.kind,
            "Content-Length": str(len(answer.data)),
            "Cache-Control": "private, max-age=86400, immutable" if answer.keep else "no-store",
            "Content-Security-Policy": _POLICY,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.data)

    def _answer(self) -> Answer:
        server = cast(ViewServer, self.server)
        # A page of another site whose name was pointed at this machine has its own name here (DNS rebinding).
        if not _NAMES.fullmatch(self.headers.get("Host", "")):
            return Answer(HTTPStatus.FORBIDDEN, b"the viewer answers to 127.0.0.1 and localhost alone")
        parts = self.path.split("/", 2)  # "*" and the like have no slash
        if len(parts) < 3 or not hmac.compare_digest(parts[1].encode(), server.key.encode()):
            return Answer(HTTPStatus.NOT_FOUND, b"give the whole address that the terminal shows")
        asked = parts[2].partition("?")[0]
        if asked in _PAGES:
            name, kind = _PAGES[asked]
            return Answer(HTTPStatus.OK, (_ASSETS / name).read_bytes(), kind)
        if asked == "slides.json":
            return _answer_json(server.listed.describe())
        found = _OF_SLIDE.fullmatch(asked)
        if found is None or int(found[1]) >= len(server.listed.slides):
            return Answer(HTTPStatus.NOT_FOUND, b"there is no such slide or tile")
        return self._answer_of_slide(server, int(found[1]), found)

    def _answer_of_slide(self, server: ViewServer, number: int, found: re.Match[str]) -> Answer:
        name = server.listed.slides[number].slide_id
        try:
            with server.workers, server.open_slides.lease(number) as slide:
                return _read(slide, found)
        except LookupError as error:
            return Answer(HTTPStatus.NOT_FOUND, str(error).encode())
        except (PandaError, OSError) as error:
            status, message = HTTPStatus.UNPROCESSABLE_ENTITY, f"{name}: {error}"
        except Exception as error:  # one tile must not end the others
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            message = f"{name}: {found[0]} failed: {type(error).__name__}: {error}"
        server.report(message)
        return Answer(status, message.encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print no line for each request."""


def _read(slide: OpenedSlide, found: re.Match[str]) -> Answer:
    """Answer an address of `_OF_SLIDE`."""
    if found[2] == "slide.json":
        return _answer_json(slide.describe())
    if found[2] == "view.jpg":
        if (view := slide.find_view()) is None:
            raise LookupError("there is no picture of the whole slide")
        return Answer(HTTPStatus.OK, view.read_bytes(), "image/jpeg", keep=True)
    layer = cast(Layer, found[3])
    data = slide.draw(layer, *map(int, found.group(4, 5, 6)))
    if data is None:
        return Answer(HTTPStatus.OK, b"", keep=True)
    return Answer(HTTPStatus.OK, data, "image/jpeg" if layer == "slide" else "image/png", keep=True)


def _answer_json(content: Any) -> Answer:
    return Answer(HTTPStatus.OK, json.dumps(content, allow_nan=False).encode(), "application/json")


def serve(server: ViewServer, started: Callable[[], object] = lambda: None) -> None:
    """Answer requests until Ctrl-C; `started` is called when the address can be opened."""
    try:
        started()
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
