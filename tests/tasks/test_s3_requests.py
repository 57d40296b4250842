"""What is asked of S3, how often, and for how long."""

import os
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest
from aiobotocore.client import AioBaseClient
from aiobotocore.response import StreamingBody
from aiohttp import ClientPayloadError
from s3fs import S3FileSystem

from tasks.artifacts.stage import run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.fetching.transient import is_transient
from tasks.storage.errors import StoreError
from tasks.storage.storage import Storage
from tests.artifacts import make_source_shard, source_recipe, stage_run
from tests.canned_servers import NO_SUCH_BUCKET, silent_server
from tests.object_server import ObjectServer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request that S3 gets, by name."""
    names: list[str] = []
    call = AioBaseClient._make_api_call

    async def watch(client: AioBaseClient, operation: str, given: Any) -> Any:
        names.append(operation)
        return await call(client, operation, given)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", watch)
    return names


class TestWhatIsAskedOfS3:
    def test_a_shard_takes_eight_requests(self, s3_store: ArtifactStore, asked: list[str]) -> None:
        """There were twelve, nine of them one after another: each also looked at the recipe, twice
        whether the shard had its receipt already, and whether its receipt was a folder."""

        def counts(num_shards: int) -> Counter[str]:
            asked.clear()
            run_stage(stage_run(s3_store), source_recipe(num_shards), make_source_shard)
            return Counter(asked)

        assert counts(4) - counts(3) == {"GetObject": 4, "PutObject": 2, "HeadObject": 2}

    @pytest.mark.parametrize("is_cut_off", [False, True])
    def test_an_object_is_read_with_one_request(
        self,
        s3_store: ArtifactStore,
        asked: list[str],
        monkeypatch: pytest.MonkeyPatch,
        is_cut_off: bool,
    ) -> None:
        """The driver asked for the size of each first: twice as many requests for images."""
        storage = s3_store.storage
        storage.put("k", bytes(100))
        storage.put("empty", b"")
        read = StreamingBody.read
        asked.clear()

        async def cut_off(body: StreamingBody, *given: Any, **named: Any) -> bytes:
            if asked == ["GetObject"]:
                raise ClientPayloadError("the connection ended early")
            return await read(body, *given, **named)

        if is_cut_off:
            monkeypatch.setattr(StreamingBody, "read", cut_off)
        assert storage.read("k") == storage.read_uri(storage.uri("k")) == bytes(100)
        again = ["HeadObject", "GetObject"] if is_cut_off else []
        assert asked == ["GetObject", *again, "GetObject"]
        assert storage.read("empty") == b""
        with pytest.raises(FileNotFoundError):
            storage.read("none")

    def test_a_large_object_is_read_in_parts(
        self, s3_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = os.urandom(1000)
        s3_store.storage.put("k", data)
        monkeypatch.setattr(S3FileSystem, "default_block_size", 300)
        assert s3_store.storage.read("k") == data

    def test_a_version_is_read_to_its_end(self, s3_server: ObjectServer) -> None:
        """Where a bucket keeps versions, what is replaced meanwhile has not expired."""
        root = f"s3://{uuid4().hex}"
        options = {"version_aware": True, "default_block_size": 1000, "default_cache_type": "none"}
        storage = Storage(root, {**s3_server.options, **options})
        bucket = {"Bucket": root.removeprefix("s3://")}
        driver = S3FileSystem(**s3_server.options)
        driver.call_s3("create_bucket", **bucket)
        keeping = {"Status": "Enabled"}
        driver.call_s3("put_bucket_versioning", **bucket, VersioningConfiguration=keeping)
        storage.put("k", b"first")
        with storage.reader("k") as file:
            assert file.read(2) == b"fi"
            storage.put("k", b"other")
            assert file.read() == b"rst"
        assert storage.read("k") == b"other"


class TestSilentS3:
    def storage(self, server: Any) -> Storage:
        config = {"read_timeout": 0.2, "retries": {"max_attempts": 1}}
        endpoint = f"http://127.0.0.1:{server.server_port}/200"
        return Storage(
            "s3://b/a",
            {"key": "k", "secret": "s", "endpoint_url": endpoint, "config_kwargs": config},
        )

    def test_a_silent_server_was_asked_five_times_as_often_as_it_was_to_be(self) -> None:
        """A command hung for more than six minutes: the driver repeats what its client repeats."""
        with silent_server(num_unanswered=1000) as server:
            with pytest.raises(StoreError, match=r"/a: cannot be reached .*endpoint_url") as caught:
                self.storage(server).read("k")
            assert server.num_requests == 2 * 2
        assert is_transient(caught.value)

    def test_a_server_that_is_silent_for_a_while_is_waited_for(self) -> None:
        """Three of the default read timeouts of 15 seconds, of which ten are waited for."""
        with silent_server(num_unanswered=3) as server:
            assert self.storage(server).read("k") == NO_SUCH_BUCKET
