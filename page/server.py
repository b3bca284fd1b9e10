"""The page's own small HTTP server: files of the page, and JSON. It writes nothing to disk and asks nobody else.

========================= ==============================================================================================
``GET /``                 the page, with its script and style
``GET /about``            :meth:`Viewer.about`
``GET /examples/<n>.wav`` the recording of an example
``POST /look``            :meth:`Viewer.look` of ``{"example": n}``, or of ``{"audio": file, "rgb": file or absent}``; a
                          file is ``{"name": text, "data": base64}``, and ``"resample": true`` is --resample
========================= ==============================================================================================

What goes wrong is answered with ``{"error": line}``: 422 where a file is not what it should be, 400 and others where
the request is not.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from dataloaders import HeldFile, Source
from errors import OptionError, UserError
from page.examples import Example
from page.viewer import Viewer

FOLDER = Path(__file__).resolve().parent
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/cloud.js": ("cloud.js", "text/javascript; charset=utf-8"),
}
MOST_BYTES = 48 * 2**20  # of a request; base64 makes that 36 MiB of files
HEADERS = {
    # The browser itself sees to it that the page reaches nothing outside.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class RequestError(UserError):
    """A request that makes no sense, with the status that says so."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Serves one viewer; a thread for each request."""

    def __init__(self, address: tuple[str, int], viewer: Viewer) -> None:
        super().__init__(address, Handler)
        self.viewer = viewer
        self.names = names_of(address[0])

    def server_bind(self) -> None:
        """Take the port, without the question for this machine's full name that the library asks a name server."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"


def create_server(viewer: Viewer, host: str, port: int) -> PageServer:
    """Open a port; ``serve_forever`` then answers. Port 0 takes any that is free.

    Raises:
        OptionError: the address is not this machine's, or the port is taken.
    """
    try:
        return PageServer((host, port), viewer)
    except (OSError, OverflowError) as error:
        raise OptionError(f"--host {host} --port {port} cannot be opened ({error}); choose another port") from None


def names_of(host: str) -> frozenset[str] | None:
    """Return the names under which a server of this machine alone may be called; None where others may call it.

    A page on the Web may give its own name this machine's address; it is refused by the name.
    """
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    return frozenset({host, "localhost", "127.0.0.1"}) if local else None


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version = "page"
    sys_version = ""
    timeout = 60  # seconds without a byte

    def do_GET(self) -> None:
        """Send a file of the page, or JSON."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Predict."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the terminal is for what went wrong."""

    def _get(self) -> tuple[bytes, str]:
        path = self.path.partition("?")[0]
        if path in FILES:
            name, kind = FILES[path]
            return (FOLDER / name).read_bytes(), kind
        if path == "/about":
            return _json(self.server.viewer.about())
        if path.startswith("/examples/") and path.endswith(".wav"):
            audio = self._example(path[len("/examples/") : -len(".wav")]).open()["audio"]
            return audio.getvalue() if isinstance(audio, HeldFile) else Path(audio).read_bytes(), "audio/wav"
        raise RequestError(HTTPStatus.NOT_FOUND, f"there is no {path}")

    def _post(self) -> tuple[bytes, str]:
        request = self._request()
        if self.path != "/look":
            raise RequestError(HTTPStatus.NOT_FOUND, f"there is no {self.path}")
        if "example" in request:
            example = self._example(str(request["example"]))
            files, measured = example.open(), example.depth
        else:
            files, measured = {key: _file(request[key], key) for key in ("audio", "rgb") if request.get(key)}, None
        return _json(self.server.viewer.look(files, measured, resample=request.get("resample") is True))

    def _example(self, number: str) -> Example:
        examples = self.server.viewer.examples
        if not (number.isascii() and number.isdecimal() and int(number) < len(examples)):
            raise RequestError(HTTPStatus.NOT_FOUND, f"there is no example {number}")
        return examples[int(number)]

    def _request(self) -> dict[str, Any]:
        """Read the JSON object that was sent.

        Pages of other sites cannot send this type without asking first, and nobody tells them yes.
        """
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            self.close_connection = True
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
        if int(length) > MOST_BYTES:
            self.close_connection = True
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the files are too large; the page takes {MOST_BYTES * 3 // 4 // 2**20} MiB in all",
            )
        body = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the request is not application/json")
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            raise RequestError(HTTPStatus.BAD_REQUEST, "the request is not JSON") from None
        if not isinstance(request, dict):
            raise RequestError(HTTPStatus.BAD_REQUEST, "the request is not a JSON object")
        return request

    def _answer(self, make: Callable[[], tuple[bytes, str]]) -> None:
        """Send what ``make`` returns, or one line that says what is wrong."""
        status = HTTPStatus.OK
        try:
            self._check_name()
            body, kind = make()
        except TimeoutError:
            self.close_connection = True
            return
        except UserError as error:
            status = error.status if isinstance(error, RequestError) else HTTPStatus.UNPROCESSABLE_ENTITY
            body, kind = _json({"error": str(error)})
        except Exception:
            traceback.print_exc()
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            body, kind = _json({"error": "a defect of this program; its traceback stands in the terminal"})
        try:
            self._send(status, body, kind)
        except ConnectionError:  # who asked has left
            self.close_connection = True

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _check_name(self) -> None:
        name = self.headers.get("Host", "").rsplit(":", 1)[0]
        if self.server.names is not None and name not in self.server.names:
            self.close_connection = True  # what it sent is not read
            raise RequestError(HTTPStatus.FORBIDDEN, f"this page is {self.server.url}, not {name}")


def _file(value: Any, key: str) -> Source:
    """Return a file of a request."""
    if not (isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("data"), str)):
        raise RequestError(HTTPStatus.BAD_REQUEST, f'{key} is not {{"name": text, "data": base64}}')
    try:
        return HeldFile(value["name"], base64.b64decode(value["data"], validate=True))
    except (binascii.Error, ValueError):
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the data of {key} are not base64") from None


def _json(value: Any) -> tuple[bytes, str]:
    return json.dumps(value, allow_nan=False).encode(), "application/json"
