"""A LLaVA mix with its archives and folders, wherever they lie, becomes questions and images."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data_contracts.sources import (
    ImageArchive,
    ImageFolder,
    LlavaMixSource,
    RemoteFile,
    Selection,
)
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.download import download
from tasks.fetching.remote import DownloadError
from tasks.planning.files import planned_files, waiting_files
from tasks.sources.record_stream import SourceError
from tests.file_server import FileServer, file_server
from tests.mixes import mix_record
from tests.source_files import mix_at, picture, published_mix, questions, runtime_of, statuses
from tests.tasks.test_image_places import COMPOSED, DECOMPOSED


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("gzip", [False, True])
def test_mix_and_archives_over_http(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path, copy: bool, gzip: bool
):
    files = published_mix(gzip)
    served = {name: server.add(f"/{name}", data) for name, data in files.items()}
    rows = questions(file_store, mix_at(server.root, copy_images=copy), tmp_path)
    expected = {str(n): "ok" for n in range(6)} | {"6": "missing_image", "t": "text_only"}
    assert statuses(rows) == expected
    by_id = {row["source_id"]: row for row in rows}
    assert by_id["5"]["image_uri"] == by_id["0"]["image_uri"], "identical images have one address"
    assert by_id["1"]["image_uri"].startswith("download/") is copy
    for one in served.values():
        one.requests.clear()
    assert questions(file_store, mix_at(server.root, copy_images=copy), tmp_path) == rows
    assert {w for one in served.values() for w in one.requests} == {"bytes=0-0"}


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("gzip", [False, True])
def test_renewed_address_of_known_bytes_gives_the_same_ids(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path, copy: bool, gzip: bool
):
    """A new signature in an address fetched the archive again and made all that follows anew."""
    files = published_mix(gzip)
    served = [server.add(f"/{name}", data) for name, data in files.items()]

    def signed(signature: int) -> LlavaMixSource:
        def file(name: str) -> RemoteFile:
            sha256 = hashlib.sha256(files[name]).hexdigest()
            return RemoteFile(uri=f"{server.root}/{name}?signature={signature}", sha256=sha256)

        images = (
            ImageArchive(file=file("images.zip"), folder="gqa"),
            ImageArchive(file=file("ocr_vqa.tar"), folder="ocr_vqa"),
        )
        source = mix_at(server.root, copy_images=copy)
        return source.model_copy(update={"records": file("mix.json"), "images": images})

    run = StageRun(file_store, runtime_of(file_store, tmp_path))
    first = download(run, signed(1))
    for one in served:
        one.requests.clear()
    assert download(run, signed(2)) == first
    assert [one.requests for one in served] == [[], [], []]
    plan = planned_files([signed(2)], run.runtime)
    assert all(file.is_here for file in plan["mix"])


@pytest.mark.parametrize("copy", [False, True])
def test_mix_and_archives_on_an_object_store(
    object_store: ArtifactStore, tmp_path: Path, copy: bool
):
    for name, data in published_mix().items():
        object_store.storage.put(f"lake/{name}", data)
    source = mix_at(object_store.storage.uri("lake"), copy_images=copy)
    rows = questions(object_store, source, tmp_path)
    assert list(statuses(rows).values()).count("ok") == 6
    kept = {path.name[13:] for path in (tmp_path / "here").glob("*.verified.json")}
    in_place = {"images.zip.verified.json", "ocr_vqa.tar.verified.json"}
    assert kept & in_place == (in_place if copy else set())


def test_archives_and_folders_may_be_mixed(file_store: ArtifactStore, tmp_path: Path):
    files = published_mix()
    for name in ("mix.json", "images.zip"):
        (tmp_path / name).write_bytes(files[name])
    (tmp_path / "rest/ocr_vqa/images").mkdir(parents=True)
    (tmp_path / "rest/ocr_vqa/images/3.png").write_bytes(picture(3))
    places = (
        ImageArchive(file=f"{tmp_path}/images.zip", folder="gqa"),
        ImageFolder(uri=f"{tmp_path}/rest"),
    )
    source = mix_at(str(tmp_path)).model_copy(update={"images": places})
    rows = questions(file_store, source, tmp_path, max_failure_rate=0.5)
    assert list(statuses(rows).values()).count("ok") == 4


@pytest.mark.parametrize("copy", [False, True])
def test_images_whose_accents_are_spelt_otherwise_are_found(
    file_store: ArtifactStore, tmp_path: Path, copy: bool
):
    """Pictures packed or unpacked on macOS were missing to records that spell the same names."""
    names = [f"zip/{COMPOSED}", f"rest/{COMPOSED}"]
    records = [mix_record(str(n), name, f"what is {n} ?") for n, name in enumerate(names)]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    (tmp_path / "rest").mkdir()
    (tmp_path / "rest" / DECOMPOSED).write_bytes(picture(0))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(DECOMPOSED, picture(1))
        archive.writestr(f"thumbs/{DECOMPOSED}", b"small")
    source = LlavaMixSource(
        name="mix",
        records=f"{tmp_path}/mix.json",
        images=(
            ImageArchive(file=f"{tmp_path}/a.zip", folder="zip"),
            ImageFolder(uri=str(tmp_path)),
        ),
        copy_images=copy,
    )
    assert statuses(questions(file_store, source, tmp_path)) == {"0": "ok", "1": "ok"}


@pytest.mark.parametrize("copy", [False, True])
def test_a_folder_given_as_an_archive_is_named(
    file_store: ArtifactStore, tmp_path: Path, copy: bool
):
    (tmp_path / "mix.json").write_bytes(published_mix()["mix.json"])
    (tmp_path / "images.zip").mkdir()
    with pytest.raises(SourceError, match=r"images.zip: is a folder, not an archive; list it as"):
        questions(file_store, mix_at(str(tmp_path), copy_images=copy), tmp_path)


def test_split_is_by_image_never_by_question(file_store: ArtifactStore, tmp_path: Path):
    (tmp_path / "images").mkdir()
    records = []
    for number in range(40):
        (tmp_path / f"images/{number}.png").write_bytes(picture(number % 30))
        for turn in range(3):
            question = f"what is {number} {turn} ?"
            records.append(mix_record(f"{number}-{turn}", f"{number}.png", question))
    (tmp_path / "mix.json").write_text(json.dumps(records))

    def part(name: str) -> list[dict[str, Any]]:
        source = LlavaMixSource(
            name="mix",
            records=f"{tmp_path}/mix.json",
            images=f"{tmp_path}/images",
            selection=Selection(part=name, held_out_ratio=0.3),
        )
        return questions(file_store, source, tmp_path)

    train, held_out, whole = part("train"), part("held_out"), part("all")
    images = [{row["image_sha256"] for row in rows} for rows in (train, held_out)]
    assert images[0].isdisjoint(images[1])
    assert 3 <= len(images[1]) <= 15
    ids = [{row["question_id"] for row in rows} for rows in (train, held_out, whole)]
    assert ids[0] | ids[1] == ids[2]
    assert not ids[0] & ids[1]


def test_server_that_has_gone_away_does_not_stop_who_has_the_files(
    file_store: ArtifactStore, tmp_path: Path
):
    with file_server() as leaving:
        for name, data in published_mix().items():
            leaving.add(f"/{name}", data)
        source = mix_at(leaving.root)
        rows = questions(file_store, source, tmp_path)
    assert questions(file_store, source, tmp_path) == rows
    assert not waiting_files((source,), runtime_of(file_store, tmp_path))
    other = tmp_path / "other"
    with pytest.raises(DownloadError, match=r"mix.json: .*refused.*\(3 attempts\)"):
        questions(file_store, source, other)


def test_source_that_is_not_there_says_so(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path
):
    with pytest.raises(DownloadError, match=r"nothing/mix.json: does not exist; check the address"):
        questions(file_store, mix_at(f"{server.root}/nothing"), tmp_path)
