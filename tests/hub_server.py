"""A small Hugging Face hub on loopback: serves model directories and answers as the hub does."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The only commit of every repository unless another is asked for; ``main`` points to it."""


@contextmanager
def model_hub(
    models: Mapping[str, Path],
    *,
    gated: tuple[str, ...] = (),
    commit: Callable[[], str] = lambda: COMMIT,
) -> Iterator[str]:
    """Serve models by id until the block ends.

    Args:
        models: hub id -> directory, looked up anew for every request.
        gated: ids that answer as gated repositories do.
        commit: of every repository at present.

    Yields:
        The endpoint, for ``HF_ENDPOINT``.
    """
    server = _HubServer(models, gated, commit)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _HubServer(ThreadingHTTPServer):
    """Holds what its handlers know."""

    def __init__(
        self, models: Mapping[str, Path], gated: tuple[str, ...], commit: Callable[[], str]
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.gated = gated
        self.commit = commit


class _Handler(BaseHTTPRequestHandler):
    server: "_HubServer"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0].strip("/").removeprefix("api/models/")
        repo = "/".join(path.split("/")[:2])
        rest = path.split("/")[2:]
        models = self.server.models
        if repo in self.server.gated:
            self._fail(403, "GatedRepo", f"Access to model {repo} is restricted.")
        elif repo not in models:
            self._fail(404, "RepoNotFound", "Repository not found")
        elif len(rest) > 1 and rest[1] not in ("main", self.server.commit()):
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
        elif self.path.startswith("/api/") and rest[:1] in ([], ["revision"]):
            self._describe(repo)
        elif rest[:1] != ["resolve"] or not (models[repo] / rest[2]).is_file():
            self._fail(404, "EntryNotFound", "Entry not found")
        else:
            self._send(models[repo] / rest[2], with_body)

    def _describe(self, repo: str) -> None:
        body = _facts(repo, self.server.commit(), self.server.models[repo])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, file: Path, with_body: bool) -> None:
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.server.commit())
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def _fail(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _facts(repo: str, commit: str, folder: Path) -> bytes:
    """What the hub's interface says of a model."""
    files = [
        {"rfilename": path.name, "size": path.stat().st_size, "blobId": "b" * 40}
        for path in sorted(folder.iterdir())
    ]
    return json.dumps({"id": repo, "sha": commit, "siblings": files}).encode()
