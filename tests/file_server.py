"""A real HTTP server on loopback that misbehaves as told: what downloads must survive."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from data_contracts.runtime import DownloadSettings, RuntimeConfig

QUICK = DownloadSettings(
    part_mib=1 / 16,
    connect_timeout=2,
    read_timeout=0.5,
    first_wait=0.01,
    max_wait=2,
    max_attempts=3,
    free_gib=0,
)


def runtime_at(folder: Path) -> RuntimeConfig:
    """A store in the folder, and downloads that do not wait long."""
    return RuntimeConfig(store=str(folder / "store"), downloads=QUICK)


@dataclass
class Answer:
    """What is done to one request."""

    status: int | None = None
    """Refuse with this status."""
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    """Close the connection after so many bytes of the body."""
    stall: bool = False
    """Send half of the body, then nothing."""
    stall_seconds: float = 5.0
    drip: bool = False
    """Send a byte now and then, for as long as anybody listens."""
    corrupt: bool = False
    """Flip the bytes of the body."""
    wait: Callable[[], object] = lambda: None
    """Called before anything is sent; other requests are answered meanwhile."""


Behave = Callable[[int, str], Answer]
"""(how many requests came before, range header) -> what to do."""


@dataclass
class Served:
    """One file and how it is served."""

    data: bytes
    takes_ranges: bool = True
    has_etag: bool = True
    has_length: bool = True
    is_weak: bool = False
    login: str | None = None
    """What ``Authorization`` has to be."""
    behave: Behave = lambda number, wanted: Answer()
    requests: list[str] = field(default_factory=list)
    """Range header of every request, in order."""
    logins: list[str | None] = field(default_factory=list)
    """``Authorization`` of every request, in order."""

    @property
    def etag(self) -> str:
        """Of the present content."""
        tag = f'"{hashlib.md5(self.data).hexdigest()}"'
        return f"W/{tag}" if self.is_weak else tag


class FileServer:
    """Files by path, on a port of its own."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.files: dict[str, Served] = {}
        self.json: dict[str, Any] = {}
        """Documents by path, as the hub's interface answers."""
        self.released = threading.Event()

    def add(self, path: str, data: bytes, **settings: Any) -> Served:
        """Serve bytes at a path."""
        self.files[path] = Served(data, **settings)
        return self.files[path]

    def url(self, path: str) -> str:
        """Address of a path."""
        return f"{self.root}{path}"


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    """Run a server until the block ends."""

    class Handler(_Handler):
        pass

    listening = _Server(("127.0.0.1", 0), Handler)
    server = FileServer(listening.server_address[1])
    Handler.files = server
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        listening.shutdown()
        listening.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up on servers that misbehave; that is no news."""


class _Handler(BaseHTTPRequestHandler):
    files: FileServer
    protocol_version = "HTTP/1.1"
    lock = threading.Lock()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Serve a file as its settings say."""
        path = unquote(self.path.partition("?")[0])
        if path in self.files.json:
            self._send_json(self.files.json[path])
            return
        served = self.files.files.get(path)
        if served is None:
            self._refuse(404, {})
            return
        wanted = self.headers.get("Range", "")
        with self.lock:
            answer = served.behave(len(served.requests), wanted)
            served.requests.append(wanted)
            served.logins.append(self.headers.get("Authorization"))
        answer.wait()
        if served.login not in (None, served.logins[-1]):
            answer = Answer(status=401)
        if answer.status is not None:
            self._refuse(answer.status, answer.headers)
            return
        self._send(served, wanted, answer)

    def do_POST(self) -> None:
        """Answer a question of the hub's client: what is known of these paths."""
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        wanted = set(parse_qs(asked).get("paths", ()))
        path = unquote(self.path.partition("?")[0])
        if path in self.files.json:
            self._send_json([found for found in self.files.json[path] if found["path"] in wanted])
        else:
            self._refuse(404, {})

    def _send_json(self, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, served: Served, wanted: str, answer: Answer) -> None:
        data, etag = served.data, served.etag
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        condition = self.headers.get("If-Range")
        is_range = served.takes_ranges and match and condition in (None, etag)
        if match and is_range:
            start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
            if start >= len(data):
                self._refuse(416, {"Content-Range": f"bytes */{len(data)}"})
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            body = data[start:stop]
        else:
            self.send_response(200)
            body = data
        if served.has_length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
        if served.has_etag:
            self.send_header("ETag", etag)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self._send_body(body, answer)

    def _send_body(self, body: bytes, answer: Answer) -> None:
        if answer.corrupt:
            body = bytes(255 - byte for byte in body)
        with contextlib.suppress(ConnectionError):
            if answer.stall:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.files.released.wait(answer.stall_seconds)
                self.close_connection = True
            elif answer.drip:
                for byte in body:
                    self.wfile.write(bytes((byte,)))
                    self.wfile.flush()
                    if self.files.released.wait(0.02):
                        break
                self.close_connection = True
            elif answer.drop_after is not None:
                self.wfile.write(body[: answer.drop_after])
                self.close_connection = True
            else:
                self.wfile.write(body)
