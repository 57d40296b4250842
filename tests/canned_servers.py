"""HTTP servers that give errors, or no answer: the object stores' servers of the tests do not."""

import contextlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

NO_SUCH_BUCKET = b"<Error><Code>NoSuchBucket</Code><Message>no bucket</Message></Error>"


class CannedHandler(BaseHTTPRequestHandler):
    """Answers /{status}/... with that status."""

    def do_GET(self) -> None:
        body = NO_SUCH_BUCKET
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    do_HEAD = do_PUT = do_POST = do_GET

    def log_message(self, *args: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def canned_server() -> Iterator[str]:
    """Endpoint of a server of errors."""
    with ThreadingHTTPServer(("127.0.0.1", 0), CannedHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class SilentHandler(CannedHandler):
    """Takes requests, and answers none before the server has got enough of them."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.num_requests += 1
        if server.num_requests > server.num_unanswered:
            super().do_GET()
        else:
            server.ended.wait()

    do_HEAD = do_PUT = do_POST = do_GET


@contextlib.contextmanager
def silent_server(num_unanswered: int) -> Iterator[Any]:
    """A server that does not answer so many requests; it counts them."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SilentHandler) as server:
        facts = {"num_requests": 0, "num_unanswered": num_unanswered, "ended": Event()}
        vars(server).update(facts)
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        facts["ended"].set()
        server.shutdown()
