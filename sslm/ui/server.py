"""The server of the local page: Python's own, read-only, for whoever may talk to this address.

A request names a run by its number and nothing else. A page of another site can neither read an answer (no CORS) nor
pass for this one (its name as Host is refused: DNS rebinding).
"""

import ipaddress
import json
import socket
import sys
from collections.abc import Callable
from errno import EADDRINUSE
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError, short
from sslm.ui.answers import Answer, Shown, rows_since, settings

STATIC = Path(__file__).parent / "static"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/ui.js": ("ui.js", "text/javascript; charset=utf-8"),
    "/ui.css": ("ui.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Serves the page of some runs; `serve_forever` begins.

    Args:
        host: name or address to listen at.
        port: port to listen at, or 0 for any free one.

    Raises:
        UserError: it can't listen there.
    """

    daemon_threads = True

    def __init__(self, shown: Shown, host: str, port: int) -> None:
        self.shown, self.host = shown, host
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), Handler)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or "no such host"
            is_taken = getattr(error, "errno", None) == EADDRINUSE
            ports = f"another port, such as --port {port % 65535 + 1}, or --port 0 for any free one"
            instead = (
                ports if is_taken else "an address of this machine, such as --host 127.0.0.1, and a port from 1024 on"
            )
            raise UserError(f"--host {short(host)} --port {port}: can't listen there ({why}); give {instead}") from None

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}/"

    def knows(self, host_header: str) -> bool:
        """Whether a Host header is ours: an address, which nobody can give to another site, or this machine's name."""
        name = urlsplit(f"//{host_header}").hostname or ""
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in ("localhost", self.host.lower(), socket.gethostname().lower())
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of one who went away in mid-answer: the page is closed, or asks again."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "sslm", ""
    timeout = 30.0

    def do_GET(self) -> None:
        try:
            is_ours = self.server.knows(self.headers.get("Host", ""))
            parts = urlsplit(self.path)
            given = {key: values[-1] for key, values in parse_qs(parts.query, max_num_fields=8).items()}
        except ValueError:
            return self.send_error(HTTPStatus.BAD_REQUEST)
        if not is_ours:
            return self.send_error(HTTPStatus.FORBIDDEN, "this page is not known by that name: use localhost")
        if parts.path in FILES:
            name, kind = FILES[parts.path]
            return self._send(HTTPStatus.OK, kind, (STATIC / name).read_bytes())
        run = self.server.shown.run(given.get("run", ""))
        rows = partial(rows_since, mark=given.get("after", ""))
        answers: dict[str, Callable[[RunFolder], Answer]] = {"/rows": rows, "/settings": settings}
        if parts.path == "/runs":
            return self._send_json(self.server.shown.overview())
        if run is None or parts.path not in answers:
            return self.send_error(HTTPStatus.NOT_FOUND)
        try:
            answer = answers[parts.path](run)
        except OSError:
            return self.send_error(HTTPStatus.NOT_FOUND)  # removed since, or nobody may read it
        self._send_json(answer)

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "this page is only read: GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _send_json(self, answer: Answer) -> None:
        self._send(HTTPStatus.OK, "application/json", json.dumps(answer, allow_nan=False).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        headers = HEADERS | {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer in plain text: nothing of a request comes back."""
        text = message if code in (HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED) else HTTPStatus(code).phrase
        self._send(code, "text/plain; charset=utf-8", f"{text}\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the page asks every few seconds."""
