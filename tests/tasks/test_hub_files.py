"""``hf://`` addresses against a loopback server that answers as the hub does."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import HfFileSystem

from data_contracts.enums import BenchmarkTask
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import BenchmarkSource, RemoteFile
from sdrpn_core.benchmarks.tasks import TASKS
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.download import download
from tasks.fetching.addresses import downloads_folder, opener
from tasks.fetching.fetcher import describe, fetch
from tasks.fetching.hub_remote import ask_hub, hub_remote
from tasks.fetching.remote import DownloadError, Unavailable
from tasks.planning.files import waiting_files
from tasks.storage.storage import Storage
from tests.benchmark_tables import write_table
from tests.file_server import QUICK, Answer, FileServer, file_server

COMMIT = "a" * 40
DATA = bytes(range(256)) * 1000
URI = "hf://datasets/owner/name/data/mix.json"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with file_server() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.root)
        template = f"{server.root}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        repository = {"id": "owner/name", "sha": COMMIT, "tags": ["license:cc-by-4.0"]}
        server.json["/api/datasets/owner/name"] = repository
        server.json["/api/datasets/owner/name/revision/v1"] = repository
        server.json["/api/datasets/owner/name/revision/refs/convert/parquet"] = repository
        digest = hashlib.sha256(DATA).hexdigest()
        lfs = {"oid": digest, "size": len(DATA), "pointerSize": 130}
        found = {"type": "file", "path": "data/mix.json", "size": len(DATA), "oid": "b" * 40}
        server.json[f"/api/datasets/owner/name/paths-info/{COMMIT}"] = [found | {"lfs": lfs}]
        server.add(f"/datasets/owner/name/resolve/{COMMIT}/data/mix.json", DATA)
        yield server


@pytest.fixture
def hub_benchmark(
    hub: FileServer, tmp_path: Path, file_store: ArtifactStore
) -> Iterator[tuple[BenchmarkSource, StageRun]]:
    """A benchmark as the hub has it: listed in a tree, each file behind its commit's address."""
    task = BenchmarkTask.TEXTVQA
    name = TASKS[task].hub_ids[0]
    repository = {"id": name, "sha": COMMIT, "tags": ["license:cc-by-4.0"]}
    hub.json[f"/api/datasets/{name}"] = repository
    listed = []
    folder = write_table(tmp_path / "published", task, 6)
    for path in sorted(folder.rglob("*.parquet")):
        data, key = path.read_bytes(), str(path.relative_to(folder))
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        blob = hashlib.sha1(data).hexdigest()
        listed.append({"type": "file", "path": key, "size": len(data), "oid": blob, "lfs": lfs})
        hub.add(f"/datasets/{name}/resolve/{COMMIT}/{key}", data)
    hub.json[f"/api/datasets/{name}/tree/main"] = listed
    hub.json[f"/api/datasets/{name}/paths-info/{COMMIT}"] = listed
    HfFileSystem.clear_instance_cache()
    settings = QUICK.model_copy(update={"folder": f"{tmp_path}/here"})
    runtime = RuntimeConfig(store=file_store.root, downloads=settings)
    yield BenchmarkSource(task=task), StageRun(file_store, runtime)
    HfFileSystem.clear_instance_cache()


def test_public_benchmark_is_fetched_like_any_file(
    hub: FileServer, hub_benchmark: tuple[BenchmarkSource, StageRun]
):
    source, run = hub_benchmark
    (file, *_) = waiting_files((source,), run.runtime)
    assert (file.licence, file.is_here) == ("cc-by-4.0", False)
    served = hub.files[next(path for path in hub.files if path.endswith(".parquet"))]
    served.behave = lambda number, wanted: Answer(drop_after=1000 if number == 2 else None)
    rows = run.store.read_frame(download(run, source))
    assert rows.filter(rows["path"].str.starts_with("images/")).height == 6
    assert not waiting_files((source,), run.runtime)
    shutil.rmtree(downloads_folder(run.runtime))
    assert not waiting_files((source,), run.runtime), "the artifact is committed"
    assert waiting_files((source,), run.runtime, force=True)


@pytest.mark.parametrize(
    "uri",
    [
        URI,
        URI.replace("name/", "name@v1/"),
        URI.replace("name/", "name@refs/convert/parquet/"),
        URI.replace("name/", "name@refs%2Fconvert%2Fparquet/"),
    ],
)
def test_file_is_pinned_verified_and_licensed(hub: FileServer, tmp_path: Path, uri: str):
    open_remote = opener(Storage(str(tmp_path)), QUICK)
    info = describe(RemoteFile(uri=uri), open_remote, QUICK)
    digest = hashlib.sha256(DATA).hexdigest()
    assert (info.num_bytes, info.sha256, info.licence) == (len(DATA), digest, "cc-by-4.0")
    fetched = fetch(RemoteFile(uri=uri), tmp_path / "here", open_remote, QUICK)
    assert fetched.path.read_bytes() == DATA


def test_bytes_that_the_hub_did_not_publish_are_refused(hub: FileServer, tmp_path: Path):
    hub.add(f"/datasets/owner/name/resolve/{COMMIT}/data/mix.json", DATA[::-1])
    with pytest.raises(DownloadError, match="sends other bytes than were published"):
        fetch(RemoteFile(uri=URI), tmp_path, opener(Storage(str(tmp_path)), QUICK), QUICK)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf://datasets/owner/none/mix.json", r"no such repository or revision on the hub, or it"),
        ("hf://datasets/owner", r"is not of the form hf://datasets/owner/name"),
    ],
)
def test_errors_say_what_to_do(hub: FileServer, tmp_path: Path, uri: str, message: str):
    with pytest.raises(DownloadError, match=message):
        fetch(RemoteFile(uri=uri), tmp_path, opener(Storage(str(tmp_path)), QUICK), QUICK)


def test_asking_whether_the_hub_answers(hub: FileServer, monkeypatch: pytest.MonkeyPatch):
    hub.json["/api/datasets/liuhaotian/LLaVA-Instruct-150K"] = {"id": "x/y", "sha": COMMIT}
    assert ask_hub(QUICK) == (hub.root, None)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    endpoint, problem = ask_hub(QUICK)
    assert endpoint.endswith(":9")
    assert problem is not None
    assert "does not answer" in problem


def test_a_name_that_the_hub_cannot_have_is_one_line():
    with pytest.raises(Unavailable, match=r"no address on the hub .*own--er.*mend it") as caught:
        hub_remote("hf://datasets/own--er/name/mix.json", QUICK)
    assert "\n" not in str(caught.value)
