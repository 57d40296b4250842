"""Folders of images on HTTP servers: every name is found, every change is noticed."""

import json
from pathlib import Path

import aiohttp
import pytest

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import RecordsConfig
from data_contracts.interop import PublishedLabels
from data_contracts.sources import LlavaMixSource
from sdrpn_core.images import UnreadableImage, decode_image
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import build_jsonl
from tasks.download import download
from tasks.fetching.transient import is_transient
from tasks.import_labels import import_labels
from tasks.sources.files import ChangedFile, load_image
from tasks.sources.record_stream import SourceError
from tasks.storage import http_driver
from tasks.storage.errors import StoreError, StoreUnreachable, TooLarge
from tasks.storage.storage import Storage
from tests.artifacts import stage_run
from tests.file_server import Answer, FileServer, Served
from tests.mixes import mix_record, write_image
from tests.published import llava_row, write_pickle

ODD_NAMES = ("a b.bmp", "50%.bmp", "x#1.bmp", "q?1.bmp", "p%20q.bmp", "\u00fc.bmp", "x#bytes=0-9")
MONDAY, TUESDAY = "Mon, 05 Oct 2026 10:00:00 GMT", "Tue, 06 Oct 2026 10:00:00 GMT"


def picture(folder: Path, seed: int) -> bytes:
    """Pictures of all seeds have the same size."""
    write_image(folder / "drawn.bmp", seed)
    return (folder / "drawn.bmp").read_bytes()


def source_of(
    server: FileServer, folder: Path, *names: str, copy_images: bool = False
) -> LlavaMixSource:
    records = [mix_record(str(number), name) for number, name in enumerate(names)]
    (folder / "mix.json").write_text(json.dumps(records), encoding="utf-8")
    return LlavaMixSource(
        name="m",
        records=f"{folder}/mix.json",
        images=f"{server.root}/images",
        copy_images=copy_images,
    )


def dated(date: str) -> Answer:
    return Answer(headers={"Last-Modified": date})


def change(served: Served, folder: Path) -> None:
    served.data = picture(folder, 1)
    if served.behave(0, "").headers.get("Last-Modified") == MONDAY:
        served.behave = lambda number, wanted: dated(TUESDAY)


@pytest.mark.parametrize("copy_images", [False, True])
@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize(
    ("has_etag", "date"), [(True, None), (False, MONDAY), (False, None), (False, "lately")]
)
def test_changed_image_is_noticed(
    server: FileServer,
    file_store: ArtifactStore,
    tmp_path: Path,
    *,
    copy_images: bool,
    has_length: bool,
    has_etag: bool,
    date: str | None,
):
    """Without an ETag all images of one size were the same: old labels were used for new ones."""
    served = server.add(
        "/images/a.bmp",
        picture(tmp_path, 0),
        has_etag=has_etag,
        has_length=has_length,
        behave=lambda number, wanted: Answer() if date is None else dated(date),
    )
    source = source_of(server, tmp_path, "a.bmp", copy_images=copy_images)
    first = download(stage_run(file_store), source)
    assert download(stage_run(file_store), source) == first
    change(served, tmp_path)
    second = download(stage_run(file_store), source)
    assert second != first
    rows = file_store.read_frame(second).filter(path="images/a.bmp").to_dicts()
    load_image(file_store, rows[0]["uri"], rows[0]["sha256"])


def test_a_date_spares_reading_the_images(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path
):
    """What tells versions apart is asked for, and an image that has it is not read to compare."""
    sent = []

    def behave(number: int, wanted: str) -> Answer:
        sent.append(number)
        return dated(MONDAY)

    server.add("/images/a.bmp", picture(tmp_path, 0), has_etag=False, behave=behave)
    source = source_of(server, tmp_path, "a.bmp")
    download(stage_run(file_store), source)
    sent.clear()
    download(stage_run(file_store), source)
    assert len(sent) == 1


def questions(store: ArtifactStore, source: LlavaMixSource, *, force: bool = False) -> ArtifactRef:
    run = stage_run(store, force=force)
    return build_jsonl(run, download(run, source), source, RecordsConfig())


def test_change_that_the_server_hides_is_mended_as_the_message_says(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path
):
    """It said to run again, which found nothing new and gave the same error for good."""
    served = server.add(
        "/images/a.bmp",
        picture(tmp_path, 0),
        has_etag=False,
        behave=lambda number, wanted: Answer(headers={"ETag": '"always"'}),
    )
    source = source_of(server, tmp_path, "a.bmp")
    ref = questions(file_store, source)
    change(served, tmp_path)
    assert questions(file_store, source) == ref
    (row,) = file_store.read_frame(ref).to_dicts()
    remedy = r"again; if it finds nothing new, `sdrpn stage STAGE --force` for download and each st"
    with pytest.raises(UnreadableImage, match=rf"a.bmp: changed since .* {remedy}"):
        load_image(file_store, row["image_uri"], row["image_sha256"])
    assert questions(file_store, source, force=True) == ref
    (row,) = file_store.read_frame(ref).to_dicts()
    load_image(file_store, row["image_uri"], row["image_sha256"])


@pytest.mark.parametrize("is_lost", [True, False])
def test_records_damaged_in_the_store_are_mended_as_the_message_says(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path, is_lost: bool
):
    """It said to run again, which takes the committed download as it is."""
    server.add("/images/a.bmp", picture(tmp_path, 0))
    source = source_of(server, tmp_path, "a.bmp")
    ref = download(stage_run(file_store), source)
    (row,) = file_store.read_frame(ref).filter(path="records.json").to_dicts()
    if is_lost:
        file_store.storage.delete([row["uri"]])
    else:
        file_store.storage.put(row["uri"], b"[]")
    with pytest.raises(ChangedFile, match=r"is damaged in the store; run `sdrpn stage download --"):
        questions(file_store, source)
    download(stage_run(file_store, force=True), source)
    questions(file_store, source)


@pytest.mark.parametrize("copy_images", [False, True])
def test_names_are_no_parts_of_urls(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path, copy_images: bool
):
    """What follows a ``#`` or ``?`` was cut off, and ``%20`` taken for a space: no such image."""
    for seed, name in enumerate(ODD_NAMES):
        server.add(f"/images/{name}", picture(tmp_path, seed))
    source = source_of(server, tmp_path, *ODD_NAMES, copy_images=copy_images)
    rows = file_store.read_frame(questions(file_store, source)).to_dicts()
    assert {row["status"] for row in rows} == {"ok"}
    for row in rows:
        image = load_image(file_store, row["image_uri"], row["image_sha256"])
        seed = int(row["source_id"])
        assert image.tobytes() == decode_image(picture(tmp_path, seed)).tobytes()


def test_names_of_imported_labels_are_no_parts_of_urls(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path
):
    """Rows whose image has a ``#`` in its name were rejects."""
    server.add("/images/gqa/x#1.bmp", picture(tmp_path, 0))
    rows = [llava_row(0) | {"image": "gqa/x#1.bmp"}]
    pickle = write_pickle(tmp_path / "part.pkl", rows)
    settings = PublishedLabels(files=(str(pickle),), images=f"{server.root}/images")
    (row,) = file_store.read_frame(import_labels(stage_run(file_store), settings)).to_dicts()
    load_image(file_store, row["image_uri"], row["image_sha256"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_driver, "_WAITS", (0.01, 0.01, 0.01))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("copy_images", [False, True])
@pytest.mark.parametrize(
    "failure", [Answer(503), Answer(429, {"Retry-After": "0"}), Answer(drop_after=10)]
)
def test_hiccup_of_a_server_is_no_missing_image(
    server: FileServer,
    file_store: ArtifactStore,
    tmp_path: Path,
    copy_images: bool,
    failure: Answer,
):
    """A server that failed while its images were looked up had none: their labels were lost."""
    served = server.add(
        "/images/a.bmp",
        picture(tmp_path, 0),
        behave=lambda number, wanted: failure if number % 4 else Answer(),
    )
    source = source_of(server, tmp_path, "a.bmp", copy_images=copy_images)
    (row,) = file_store.read_frame(questions(file_store, source)).to_dicts()
    assert row["status"] == "ok"
    assert load_image(file_store, row["image_uri"], row["image_sha256"]).size
    assert len(served.requests) > 4


@pytest.mark.usefixtures("quick")
def test_server_that_stays_down_stops_the_run(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path
):
    server.add("/images/a.bmp", picture(tmp_path, 0), behave=lambda number, wanted: Answer(503))
    with pytest.raises(StoreUnreachable, match=r"/images: cannot be reached \(503") as caught:
        questions(file_store, source_of(server, tmp_path, "a.bmp"))
    assert is_transient(caught.value)


@pytest.mark.usefixtures("quick")
def test_one_image_of_which_a_server_fails_for_good_is_missing(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path
):
    """It would stop every run, and no setting could help."""
    failing = server.add(
        "/images/a.bmp", picture(tmp_path, 0), behave=lambda number, wanted: Answer(500)
    )
    server.add("/images/b.bmp", picture(tmp_path, 1))
    source = source_of(server, tmp_path, "a.bmp", "b.bmp")
    rows = file_store.read_frame(questions(file_store, source)).sort("source_id")
    assert rows["status"].to_list() == ["missing_image", "ok"]
    failing.behave = lambda number, wanted: Answer()
    rows = file_store.read_frame(questions(file_store, source))
    assert rows["status"].to_list() == ["ok", "ok"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("copy_images", [False, True])
def test_images_that_were_seen_are_not_missing_because_the_server_fails(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path, copy_images: bool
):
    """The download was committed without them, for good."""
    sent = []

    def fails_when_read(number: int, wanted: str) -> Answer:
        sent.append(number)
        return Answer(500 if 1 < len(sent) < 6 else None)

    server.add("/images/a.bmp", picture(tmp_path, 0), behave=fails_when_read)
    source = source_of(server, tmp_path, "a.bmp", copy_images=copy_images)
    with pytest.raises((StoreUnreachable, SourceError), match="500"):
        questions(file_store, source)
    (row,) = file_store.read_frame(questions(file_store, source)).to_dicts()
    assert row["status"] == "ok"


@pytest.mark.usefixtures("quick")
def test_a_silent_server_is_asked_once_more(server: FileServer, tmp_path: Path):
    """It was asked eight times, for five minutes each."""
    served = server.add(
        "/images/a.bmp", picture(tmp_path, 0), behave=lambda number, wanted: Answer(stall=True)
    )
    patience = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_read=0.2)}}
    storage = Storage(f"{server.root}/images", patience)
    with pytest.raises(StoreUnreachable, match=r"check the network and the address"):
        storage.read("a.bmp")
    assert len(served.requests) == 2
    served.behave = lambda number, wanted: Answer(stall=number == 2)
    assert storage.read("a.bmp") == served.data


@pytest.mark.usefixtures("quick")
@pytest.mark.timeout(60)
def test_a_server_that_drips_counts_as_silent(server: FileServer, tmp_path: Path):
    served = server.add(
        "/images/a.bmp", picture(tmp_path, 0), behave=lambda number, wanted: Answer(drip=True)
    )
    patience = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_read=0.2)}}
    storage = Storage(f"{server.root}/images", patience)
    with pytest.raises(StoreUnreachable, match=r"bytes came in 0 s\); check the network"):
        storage.read("a.bmp")
    assert len(served.requests) == 2


def test_no_more_is_read_of_an_image_than_any_image_has(server: FileServer, tmp_path: Path):
    """A server could send until no memory was left."""
    served = server.add("/images/a.bmp", picture(tmp_path, 0), has_length=False)
    storage = Storage(f"{server.root}/images")
    uri = storage.uri("a.bmp")
    assert storage.read_uri(uri, len(served.data)) == served.data
    with pytest.raises(TooLarge, match="which no image has"):
        storage.read_uri(uri, len(served.data) - 1)
    served.has_etag = False
    with pytest.raises(StoreError, match=r"images/a\.bmp: has more than .*; take it out"):
        storage.describe(["a.bmp"], len(served.data) - 1)
    assert storage.describe(["a.bmp"])["a.bmp"].num_bytes == len(served.data)


@pytest.mark.usefixtures("quick")
def test_a_server_that_fails_as_versions_are_looked_up_is_named(server: FileServer, tmp_path: Path):
    """What had to be read for its version failed without saying whose, or what to check."""

    def sends_no_bodies(number: int, wanted: str) -> Answer:
        return Answer(503 if number else None)

    server.add("/images/a.bmp", picture(tmp_path, 0), has_etag=False, behave=sends_no_bodies)
    with pytest.raises(StoreUnreachable, match=r"/images: cannot be reached \(503"):
        Storage(f"{server.root}/images").describe(["a.bmp"])


@pytest.mark.parametrize("status", [403, 404, 410])
def test_image_that_a_server_refuses_is_missing(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path, status: int
):
    """Servers before an object store say 403 of what is not there."""
    served = server.add(
        "/images/a.bmp", picture(tmp_path, 0), behave=lambda number, wanted: Answer(status)
    )
    server.add("/images/b.bmp", picture(tmp_path, 1))
    rows = file_store.read_frame(
        questions(file_store, source_of(server, tmp_path, "a.bmp", "b.bmp"))
    )
    assert rows["status"].to_list() == ["missing_image", "ok"]
    assert len(served.requests) <= 2
