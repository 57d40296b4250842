"""Reading whole objects from gateways that answer in other ways than S3 itself."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from tasks.storage.s3_driver import SparingS3FileSystem


class _Chunked(BaseHTTPRequestHandler):
    """HEAD says how long the object is; GET does not, and sends it in chunks."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._begin("Content-Length", "3")

    def do_GET(self) -> None:
        self._begin("Transfer-Encoding", "chunked")
        self.wfile.write(b"3\r\nabc\r\n0\r\n\r\n")

    def _begin(self, name: str, value: str) -> None:
        self.send_response(200)
        self.send_header("Last-Modified", "Tue, 01 Dec 2026 00:00:00 GMT")
        self.send_header("ETag", '"x"')
        self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


def test_an_object_in_chunks_is_read_though_nobody_says_how_long_it_is() -> None:
    """It was a KeyError."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Chunked) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        driver = SparingS3FileSystem(
            anon=True,
            endpoint_url=f"http://127.0.0.1:{server.server_port}",
            client_kwargs={"region_name": "us-east-1"},
            skip_instance_cache=True,
        )
        assert driver.cat_file("bucket/key") == b"abc"
        server.shutdown()
