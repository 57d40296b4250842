"""A hub that cannot be reached, falls silent or is busy, asked by its real client."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import HfFileSystem

from data_contracts.configs import PipelineConfig
from data_contracts.enums import BenchmarkTask
from data_contracts.errors import SdrpnError
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import BenchmarkSource, ParquetSource
from flows.dry_run import plan_run
from tasks.fetching.hub_remote import hub_remote
from tasks.fetching.remote import Hiccup, NoAnswer, Unavailable
from tasks.fetching.transient import is_transient
from tasks.planning.files import waiting_files
from tasks.storage.errors import StoreError, StoreUnreachable
from tasks.storage.storage import Storage
from tests.file_server import QUICK, Answer, FileServer, file_server

PATTERN = "hf://datasets/owner/name/data/*.parquet"
SOURCES = (
    ParquetSource(name="p", files=(PATTERN,)),
    BenchmarkSource(task=BenchmarkTask.TEXTVQA),
)


@pytest.fixture(params=["nobody listens", "nobody answers"])
def silent_hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub's address is one whose port is closed, or that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = 9 if request.param == "nobody listens" else listening.getsockname()[1]
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        with hub_at(f"http://127.0.0.1:{port}", monkeypatch):
            yield


@pytest.fixture
def busy_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with file_server() as server, hub_at(server.root, monkeypatch):
        yield server


@contextmanager
def hub_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    HfFileSystem.clear_instance_cache()  # they remember where the hub was
    yield
    HfFileSystem.clear_instance_cache()


def runtime_at(folder: Path) -> RuntimeConfig:
    downloads = QUICK.model_copy(update={"folder": f"{folder}/here"})
    return RuntimeConfig(store=f"{folder}/store", downloads=downloads)


@pytest.mark.usefixtures("silent_hub")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.type)
def test_a_silent_hub_is_worth_another_try(source: ParquetSource | BenchmarkSource, tmp_path: Path):
    with pytest.raises(SdrpnError, match=r"check the network and HF_ENDPOINT") as caught:
        waiting_files((source,), runtime_at(tmp_path))
    assert is_transient(caught.value)
    assert "endpoint_url" not in str(caught.value)
    assert "name each file" not in str(caught.value)


@pytest.mark.usefixtures("silent_hub")
def test_what_only_a_silent_hub_can_list_stands_in_the_plan_as_unknown(tmp_path: Path):
    config = PipelineConfig(name="x", sources=SOURCES[:1])
    (file,) = plan_run(config, runtime_at(tmp_path)).unknown_files
    assert file.uri == PATTERN
    assert file.problem in ("[Errno 111] Connection refused", "timed out")


@pytest.mark.usefixtures("silent_hub")
def test_a_store_on_a_silent_hub_is_unreachable():
    with pytest.raises(StoreUnreachable, match=r"HF_ENDPOINT, and that HF_HUB_OFFLINE") as caught:
        Storage("hf://datasets/owner/name").read("mix.json")
    assert is_transient(caught.value)


@pytest.mark.parametrize(("status", "is_passing"), [(503, True), (429, True), (403, False)])
def test_a_hub_that_refuses_to_list(
    busy_hub: FileServer, tmp_path: Path, status: int, is_passing: bool
):
    answered = busy_hub.add("/api/datasets/owner/name", b"")
    answered.behave = lambda number, wanted: Answer(status=status)
    wanted, remedy = (NoAnswer, "HF_ENDPOINT") if is_passing else (SdrpnError, "hf auth login")
    with pytest.raises(wanted, match=remedy) as caught:
        waiting_files(SOURCES[:1], runtime_at(tmp_path))
    assert is_transient(caught.value) == is_passing
    assert "\n" not in str(caught.value)


def test_a_wrong_address_of_the_hub_is_wrong_for_good(monkeypatch: pytest.MonkeyPatch):
    with hub_at("hub.example", monkeypatch):
        with pytest.raises(Unavailable, match="check HF_ENDPOINT"):
            hub_remote("hf://datasets/owner/name/mix.json", QUICK)
        with pytest.raises(StoreError, match="check the URI, HF_ENDPOINT") as caught:
            Storage("hf://datasets/owner/name").read("mix.json")
    assert not is_transient(caught.value)


@pytest.mark.parametrize(
    ("asked", "pause"), [("7", 7.0), ("\u00b2", None), ("", None), ("soon", None)]
)
def test_the_pause_that_a_busy_hub_asks_for(busy_hub: FileServer, asked: str, pause: float | None):
    answered = busy_hub.add("/api/datasets/owner/name", b"")
    answered.behave = lambda number, wanted: Answer(status=503, headers={"Retry-After": asked})
    with pytest.raises(Hiccup, match="does not answer") as caught:
        hub_remote("hf://datasets/owner/name/mix.json", QUICK)
    assert caught.value.retry_after == pause
