"""The download stage on every kind of storage: digests, identity, resuming."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from data_contracts.artifact import ArtifactRef
from data_contracts.sources import LlavaMixSource
from tasks import recipes
from tasks.artifacts.store import ArtifactStore
from tasks.download import download
from tasks.shard_statistics import NUM_RECORDS
from tasks.sources.record_stream import SourceError
from tasks.storage.errors import StoreError
from tests.artifacts import stage_run
from tests.mixes import mix_record, write_image, write_small_mix
from tests.privileges import given_away, without_privileges


def table(store: ArtifactStore, ref: ArtifactRef) -> dict[str, dict]:
    return {row["path"]: row for row in store.read_frame(ref).iter_rows(named=True)}


@pytest.mark.parametrize("copy_images", [False, True])
def test_every_file_is_listed_with_its_digest(
    store: ArtifactStore, tmp_path: Path, copy_images: bool
):
    source = write_small_mix(tmp_path / "data", copy_images=copy_images)
    rows = table(store, download(stage_run(store), source))
    images = {path for path in rows if path.startswith("images/")}
    assert images == {
        f"images/{f}/images/{n}.png" for f, n in zip(["gqa", "ocr_vqa"] * 3, range(6), strict=True)
    }
    for path, row in rows.items():
        local = tmp_path / "data" / (path if path in images else "mix.json")
        assert row["sha256"] == hashlib.sha256(local.read_bytes()).hexdigest()
        assert row["num_bytes"] == local.stat().st_size
        assert store.read_uri(row["uri"]) == local.read_bytes()
        assert (str(tmp_path / "data") in row["uri"]) == (path in images and not copy_images)


def test_source_on_object_storage(s3_store: ArtifactStore, tmp_path: Path):
    source = write_small_mix(tmp_path)
    for file in tmp_path.rglob("*.*"):
        s3_store.storage.put(f"lake/{file.relative_to(tmp_path)}", file.read_bytes())
    remote = LlavaMixSource(
        name="lake",
        records=s3_store.storage.uri("lake/mix.json"),
        images=s3_store.storage.uri("lake/images/"),
    )
    local_rows = table(s3_store, download(stage_run(s3_store), source))
    ref = download(stage_run(s3_store), remote)
    rows = table(s3_store, ref)
    assert {p: r["sha256"] for p, r in rows.items()} == {
        p: r["sha256"] for p, r in local_rows.items()
    }
    assert all(s3_store.read_uri(row["uri"]) for row in rows.values())
    assert download(stage_run(s3_store), remote) == ref


def test_images_behind_a_linked_folder_are_found(file_store: ArtifactStore, tmp_path: Path):
    """Data sets are usually linked into LLaVA's folder layout; a listing does not follow links."""
    source = write_small_mix(tmp_path / "data")
    os.rename(tmp_path / "data/images/gqa", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data/images/gqa")
    assert len(table(file_store, download(stage_run(file_store), source))) == 7


def test_second_run_makes_nothing(file_store: ArtifactStore, tmp_path: Path):
    source = write_small_mix(tmp_path / "data")
    ref = download(stage_run(file_store), source)
    reported = []
    again = stage_run(file_store, on_progress=lambda *progress: reported.append(progress))
    assert download(again, source) == ref
    assert reported == [("download", 2, 2)]


def test_identity_follows_the_data_not_the_source_name(file_store: ArtifactStore, tmp_path: Path):
    source = write_small_mix(tmp_path / "data")
    run = stage_run(file_store)
    first = download(run, source)
    assert download(run, source.model_copy(update={"name": "other"})) == first
    write_image(tmp_path / "data/images/gqa/images/unrelated.png")
    assert download(run, source) == first
    write_image(tmp_path / "data/images/gqa/images/0.png", seed=99)
    edited = download(run, source)
    assert edited != first
    write_image(tmp_path / "data/images/gqa/images/gone.png")
    assert download(run, source) not in (edited, first)


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_way_to_a_source_is_no_part_of_it(
    file_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_packed: bool
):
    """From a folder beside the data (../data), every stage was made anew, and its rows led through
    that folder: without it, no image was found."""
    write_small_mix(tmp_path / "data")
    images = str(tmp_path / "data/images")
    if is_packed:
        images = shutil.make_archive(images, "zip", images)
    records = tmp_path / "data/mix.json"
    run = stage_run(file_store)
    plain = download(run, LlavaMixSource(name="m", records=str(records), images=_place(images)))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    near = {"records": "../data/mix.json", "images": _place(f"../data/{Path(images).name}")}
    assert download(run, LlavaMixSource(name="m", **near)) == plain
    (tmp_path / "work").rmdir()
    uris = [row["uri"] for row in table(file_store, plain).values()]
    assert not [uri for uri in uris if ".." in uri]
    assert all(file_store.read_uri(uri) for uri in uris)


def _place(images: str) -> Any:
    """Images of a source: a folder, or an archive."""
    return [{"type": "archive", "file": images}] if images.endswith((".zip", ".tar")) else images


def test_copied_source_may_move(file_store: ArtifactStore, tmp_path: Path):
    source = write_small_mix(tmp_path / "data", copy_images=True)
    ref = download(stage_run(file_store), source)
    os.rename(tmp_path / "data", tmp_path / "moved")
    moved = source.model_copy(
        update={"records": f"{tmp_path}/moved/mix.json", "images": f"{tmp_path}/moved/images"}
    )
    assert download(stage_run(file_store), moved) == ref


def test_resumes_after_the_shards_that_are_done(
    file_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recipes, "IMAGES_PER_SHARD", 2)
    source = write_small_mix(tmp_path / "data", copy_images=True)

    class Killed(BaseException):
        pass

    def stop(stage: str, num_done: int, num_shards: int) -> None:
        if num_done == 2:
            raise Killed

    with pytest.raises(Killed):
        download(stage_run(file_store, on_progress=stop), source)
    reported: list[int] = []
    run = stage_run(file_store, on_progress=lambda stage, done, total: reported.append(done))
    ref = download(run, source)
    assert reported == [2, 3, 4, 5]
    assert len(table(file_store, ref)) == 7
    assert len(file_store.manifest(ref).shards) == 5


def test_json_lines_are_read_too(file_store: ArtifactStore, tmp_path: Path):
    source = write_small_mix(tmp_path)
    records = json.loads((tmp_path / "mix.json").read_text())
    (tmp_path / "mix.json").write_text("\n".join(json.dumps(record) for record in records))
    manifest = file_store.manifest(download(stage_run(file_store), source))
    assert manifest.statistics[NUM_RECORDS] == 10


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("records", "nowhere.json", r"nowhere.json: no such file; check the source's URI"),
        ("records", "images", r"images: no such file"),
        ("records", "images/gqa/images/0.png", r"0.png: is no JSON \(the line is not"),
        (
            "records",
            "broken.json",
            r"broken.json: record 1 is not JSON .*is the file comp",
        ),
        (
            "images",
            "nowhere",
            r"nowhere: holds none of the 7 images .*'gqa/images/0.png'.*point `im",
        ),
    ],
)
def test_errors_name_the_uri_and_the_remedy(
    file_store: ArtifactStore, tmp_path: Path, field: str, value: str, message: str
):
    source = write_small_mix(tmp_path)
    (tmp_path / "broken.json").write_text('[{"id": 1},')
    wrong = source.model_copy(update={field: f"{tmp_path}/{value}"})
    with pytest.raises(SourceError, match=message) as caught:
        download(stage_run(file_store), wrong)
    assert "\n" not in str(caught.value)


def test_missing_driver_is_one_line(file_store: ArtifactStore, tmp_path: Path):
    source = write_small_mix(tmp_path).model_copy(update={"records": "nosuch://a/mix.json"})
    with pytest.raises(Exception, match=r"nosuch://a/mix.json: .*nosuch"):
        download(stage_run(file_store), source)


def test_text_only_mix_has_no_images(file_store: ArtifactStore, tmp_path: Path):
    (tmp_path / "mix.json").write_text(json.dumps([mix_record("a", None)]))
    source = LlavaMixSource(name="t", records=f"{tmp_path}/mix.json", images=f"{tmp_path}/images")
    assert list(table(file_store, download(stage_run(file_store), source))) == ["records.json"]


def load_what_is_loaded_late(source: LlavaMixSource) -> None:
    """The interpreter's own files may be closed to others too."""
    download(stage_run(ArtifactStore(f"memory://{uuid4().hex}")), source)


def test_image_that_may_not_be_read_is_a_reject_until_it_may():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        (folder / "folder").mkdir()
        names = ("a.png", "closed.png", "folder/c.png")
        for number, image in enumerate(names):
            write_image(folder / image, number)
        (folder / "mix.json").write_text(json.dumps([mix_record(image, image) for image in names]))
        source = LlavaMixSource(name="mine", records=f"{folder}/mix.json", images=name)
        given_away(folder)
        (folder / "closed.png").chmod(0)
        (folder / "folder").chmod(0)
        store = ArtifactStore(f"{folder}/store")
        run = stage_run(store)
        load_what_is_loaded_late(source)
        with without_privileges():
            table = store.read_frame(download(run, source))
        problems = {row["path"]: row["problem"] for row in table.to_dicts()}
        assert problems["images/a.png"] is None
        for closed in ("closed.png", "folder/c.png"):
            assert (
                f"may not be read; give it read permission (chmod +r {folder}/{closed})"
                == (problems[f"images/{closed}"])
            )
        (folder / "folder").chmod(0o755)
        (folder / "closed.png").chmod(0o644)
        with without_privileges():
            again = store.read_frame(download(run, source))
        assert again["problem"].null_count() == again.height


def test_a_file_larger_than_any_image_is_a_reject(file_store: ArtifactStore, tmp_path: Path):
    write_image(tmp_path / "a.png", 0)
    with (tmp_path / "b.png").open("wb") as file:
        file.truncate(1 << 40)  # without taking room on the disk
    (tmp_path / "mix.json").write_text(json.dumps([mix_record(n, f"{n}.png") for n in "ab"]))
    source = LlavaMixSource(name="m", records=f"{tmp_path}/mix.json", images=str(tmp_path))
    rows = table(file_store, download(stage_run(file_store), source))
    assert rows["images/a.png"]["problem"] is None
    assert rows["images/b.png"]["problem"] == "has more than 512 MiB, which no image has"


def test_an_archive_that_may_not_be_read_is_named():
    """Its folder was: one was to choose a folder that one may read and write."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        write_small_mix(folder)
        packed = shutil.make_archive(f"{name}/images", "tar", f"{name}/images")
        source = LlavaMixSource(name="m", records=f"{name}/mix.json", images=_place(packed))
        load_what_is_loaded_late(source)
        given_away(folder)
        Path(packed).chmod(0)
        run = stage_run(ArtifactStore(f"{name}/store"))
        with without_privileges(), pytest.raises(StoreError) as refused:
            download(run, source)
        told = f"{packed} may not be read; give it read permission (chmod +r)"
        assert str(refused.value).endswith(told)
