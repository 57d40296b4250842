"""Every kind of source, from files exactly as they are published to questions and images."""

import hashlib
import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.configs import EvaluationConfig, PipelineConfig, RecordsConfig
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import (
    ImageArchive,
    ImageFolder,
    LlavaMixSource,
    ParquetSource,
    RemoteFile,
    Selection,
    Source,
    VisualCotSource,
)
from flows.dry_run import plan_run
from sdrpn_core.records import build_records
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import build_jsonl
from tasks.download import download
from tasks.fetching.remote import DownloadError
from tasks.planning.files import planned_files, waiting_files
from tasks.sources.evaluation_documents import SourceDocuments
from tasks.sources.files import load_image
from tasks.sources.local_records import local_records
from tasks.sources.parquet_images import convert_parquet
from tasks.sources.record_stream import SourceError, read_records
from tasks.sources.source_fetcher import Fetcher
from tests.bad_corpora import GOOD, encoded
from tests.file_server import QUICK, FileServer, file_server
from tests.mixes import mix_record
from tests.tasks.test_image_places import COMPOSED, DECOMPOSED


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


def picture(number: int, format: str = "PNG") -> bytes:
    return encoded(format, GOOD.rotate(number, expand=True))


def runtime_of(store: ArtifactStore, folder: Path) -> RuntimeConfig:
    settings = QUICK.model_copy(update={"folder": f"{folder}/here"})
    return RuntimeConfig(
        store=store.root, storage_options=store.storage.storage_options, downloads=settings
    )


def questions(
    store: ArtifactStore, source: Source, folder: Path, **settings: Any
) -> list[dict[str, Any]]:
    run = StageRun(store, runtime_of(store, folder))
    ref = build_jsonl(run, download(run, source), source, RecordsConfig(**settings))
    rows = store.read_frame(ref).to_dicts()
    for row in rows:
        if row["status"] == "ok":
            load_image(store, row["image_uri"], row["image_sha256"])
    return rows


def published(folder: Path, gzip: bool = False) -> dict[str, bytes]:
    """A mix, GQA's zip and OCR-VQA's tar, by file name."""
    gqa, ocr = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(gqa, "w") as archive:
        for number in range(3):
            archive.writestr(f"images/{number}.png", picture(number))
        archive.writestr("__MACOSX/images/._0.png", b"junk")
    with tarfile.open(fileobj=ocr, mode="w:gz" if gzip else "w") as archive:
        for number in range(3, 6):
            data = picture(number if number < 5 else 0)  # the last is a copy of one of GQA's
            info = tarfile.TarInfo(f"data/ocr_vqa/images/{number}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    names = [f"gqa/images/{n}.png" for n in range(3)] + [
        f"ocr_vqa/images/{n}.png" for n in range(3, 7)
    ]
    records = [mix_record(str(n), name, f"what is {n} ?") for n, name in enumerate(names)]
    records += [mix_record("t", None), mix_record("c", "coco/train2017/1.jpg")]
    return {
        "mix.json": json.dumps(records).encode(),
        "images.zip": gqa.getvalue(),
        "ocr_vqa.tar": ocr.getvalue(),
    }


def mix_at(root: str, **settings: Any) -> LlavaMixSource:
    return LlavaMixSource(
        name="mix",
        records=f"{root}/mix.json",
        images=(
            ImageArchive(file=f"{root}/images.zip", folder="gqa"),
            ImageArchive(file=f"{root}/ocr_vqa.tar", folder="ocr_vqa"),
        ),
        **{"selection": Selection(folders=("gqa", "ocr_vqa")), **settings},
    )


def statuses(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["source_id"]: row["status"] for row in rows}


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("gzip", [False, True])
def test_mix_and_archives_over_http(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path, copy: bool, gzip: bool
):
    files = published(tmp_path, gzip)
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
    files = published(tmp_path, gzip)
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
    for name, data in published(tmp_path).items():
        object_store.storage.put(f"lake/{name}", data)
    source = mix_at(object_store.storage.uri("lake"), copy_images=copy)
    rows = questions(object_store, source, tmp_path)
    assert list(statuses(rows).values()).count("ok") == 6
    kept = {path.name[13:] for path in (tmp_path / "here").glob("*.verified.json")}
    in_place = {"images.zip.verified.json", "ocr_vqa.tar.verified.json"}
    assert kept & in_place == (in_place if copy else set())


def test_archives_and_folders_may_be_mixed(file_store: ArtifactStore, tmp_path: Path):
    files = published(tmp_path)
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
    (tmp_path / "mix.json").write_bytes(published(tmp_path)["mix.json"])
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


def test_visual_cot_lines_with_boxes(file_store: ArtifactStore, tmp_path: Path):
    (tmp_path / "images/textvqa").mkdir(parents=True)
    (tmp_path / "images/textvqa/a.png").write_bytes(picture(0))
    lines = [
        {"question": "what is it ?", "answer": "b", "image": "a.png", "dataset": "textvqa"}
        | {"bboxs": [[1, 2, 9, 8], [4, 1, 12, 6]], "width": 64, "height": 48},
        {"question": "who ?", "answer": "c", "image": "a.png", "dataset": "textvqa", "bboxs": []},
        {"question": "", "answer": "c", "image": "a.png", "dataset": "textvqa"},
        {"question": "where ?", "answer": "here", "image": "a.png", "dataset": "textvqa"}
        | {"bboxs": [[20, 20, 30, 40]]},
        {"answer": "no question, no image", "bboxs": [[20, 20, 30, 40]]},
        ["no object"],
    ]
    text = "\n".join([*(json.dumps(line) for line in lines), "{torn"])
    (tmp_path / "viscot.jsonl").write_text(text)
    source = VisualCotSource(
        name="cot", records=f"{tmp_path}/viscot.jsonl", images=f"{tmp_path}/images"
    )
    rows = questions(file_store, source, tmp_path, max_failure_rate=0.7)
    assert Counter(row["status"] for row in rows) == {
        "malformed": 2,
        "no_question": 1,
        "text_only": 1,
        "ok": 3,
    }
    run = StageRun(file_store, runtime_of(file_store, tmp_path))
    documents = SourceDocuments(file_store, download(run, source), "vqa")
    boxes = {row["question"]: documents.document(row).true_box for row in rows}
    assert boxes["what is it ?"] == (1, 1, 12, 8)
    assert boxes["where ?"] == (20, 20, 30, 40), "of the same image, but another question"
    assert boxes["who ?"] is None


def parquet(path: Path, **columns: Any) -> None:
    given = {
        "image": [{"bytes": picture(n % 3, "JPEG"), "path": f"{n}.jpg"} for n in range(5)],
        "question": [f"what is {n} ?" for n in range(5)],
        "answers": [[f"a{n}", "b"] for n in range(5)],
        "question_id": list(range(5)),
    }
    pq.write_table(pa.table(given | columns), path, row_group_size=2)


def test_parquet_rows_with_image_bytes(file_store: ArtifactStore, tmp_path: Path):
    parquet(tmp_path / "a.parquet")
    source = ParquetSource(name="hub", files=(f"{tmp_path}/a.parquet",), id_column="question_id")
    rows = sorted(questions(file_store, source, tmp_path), key=lambda row: row["source_id"])
    assert [row["status"] for row in rows] == ["ok"] * 5
    assert [row["answers"] for row in rows] == [[f"a{n}"] for n in range(5)]
    assert len({row["image_sha256"] for row in rows}) == 3
    assert {row["dataset"] for row in rows} == {"hub"}


def test_parquet_files_by_pattern(store: ArtifactStore, tmp_path: Path):
    for number, name in enumerate(("data/train-0.parquet", "data/train-1.parquet")):
        parquet(tmp_path / "local.parquet", question=[f"is it {number} {n} ?" for n in range(5)])
        store.storage.put(f"lake/{name}", (tmp_path / "local.parquet").read_bytes())
    store.storage.put("lake/data/test-0.parquet", b"of another split")
    store.storage.put("lake/data/train-old/train-0.parquet", b"of another folder")
    source = ParquetSource(name="hub", files=(store.storage.uri("lake/data/train-*.parquet"),))
    rows = questions(store, source, tmp_path)
    assert len({row["question"] for row in rows if row["status"] == "ok"}) == 10
    files = planned_files((source,), runtime_of(store, tmp_path))[source.name]
    assert [file.uri.rpartition("/")[2] for file in files] == ["train-0.parquet", "train-1.parquet"]
    none = source.model_copy(update={"files": (store.storage.uri("lake/data/val-*.parquet"),)})
    with pytest.raises(DownloadError, match=r"val-\*.parquet: matches none of 3 files; check"):
        questions(store, none, tmp_path)


def test_parquet_with_bad_rows(file_store: ArtifactStore, tmp_path: Path):
    images = [None, {"bytes": b"junk", "path": ""}, *({"bytes": picture(n)} for n in range(3))]
    questions_given = ["a ?", "b ?", None, "d ?", "e ?"]
    parquet(tmp_path / "a.parquet", image=images, question=questions_given)
    source = ParquetSource(name="hub", files=(f"{tmp_path}/a.parquet",))
    rows = questions(file_store, source, tmp_path, max_failure_rate=0.6)
    expected = ["malformed", "ok", "ok", "text_only", "unreadable_image"]
    assert sorted(row["status"] for row in rows) == expected


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image": [[picture(n), picture(n + 1)] for n in range(4)] + [[picture(0)]]}, "2 images;"),
        (
            {"image": [{"bytes": None, "path": "0.jpg"}] * 4 + [{"bytes": picture(0)}]},
            "image bytes are not in the file",
        ),
        ({"image": ["0.jpg"] * 5}, "image bytes are not in the file"),
        ({"question": [b"what ?"] * 5}, "column 'question' holds bytes, not text"),
    ],
)
def test_a_parquet_row_that_cannot_be_converted_is_a_reject(
    tmp_path: Path, columns: dict[str, Any], reason: str
):
    parquet(tmp_path / "a.parquet", **columns)
    source = ParquetSource(name="hub", files=(f"{tmp_path}/a.parquet",))
    convert_parquet([tmp_path / "a.parquet"], source, tmp_path)
    with (tmp_path / "records.jsonl").open("rb") as file:
        rows = build_records(read_records(file, "a"), "hub", RecordsConfig(), {})
    is_good = [row["status"] == "missing_image" for row in rows]
    assert is_good[:4] == [False] * 4
    assert {row["status"] for row in rows[:4]} == {"malformed"}
    assert all(reason in row["reason"] for row in rows[:4])
    with tarfile.open(tmp_path / "images.tar") as archive:
        assert len(archive.getnames()) == sum(is_good)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_column": "picture"}, r"has no column 'picture', only image, question"),
        ({"files": ("{folder}/torn.parquet",)}, r"is no whole Parquet file"),
        ({"files": ("{folder}/gone.parquet",)}, r"gone.parquet: no such file"),
    ],
)
def test_parquet_errors_are_one_line(
    file_store: ArtifactStore, tmp_path: Path, change: dict[str, Any], message: str
):
    parquet(tmp_path / "a.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    change = {k: (v[0].format(folder=tmp_path),) if k == "files" else v for k, v in change.items()}
    given = {"files": (f"{tmp_path}/a.parquet",)} | change
    with pytest.raises(SourceError, match=message) as caught:
        questions(file_store, ParquetSource(name="hub", **given), tmp_path)
    assert "\n" not in str(caught.value)


def test_size_digest_and_licence_are_known_before_a_download(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path
):
    for name, data in published(tmp_path).items():
        server.add(f"/{name}", data)
    source = mix_at(server.root)
    licensed = RemoteFile(uri=f"{server.root}/mix.json", licence="CC BY 4.0")
    source = source.model_copy(update={"records": licensed})
    files = planned_files((source,), runtime_of(file_store, tmp_path))[source.name]
    sizes = {name: len(data) for name, data in published(tmp_path).items()}
    assert {f.uri.rpartition("/")[2]: f.num_bytes for f in files} == sizes
    assert files[0].licence == "CC BY 4.0"
    assert not any(file.is_here for file in files)
    assert not (tmp_path / "here").exists()

    runtime = runtime_of(file_store, tmp_path)
    download(StageRun(file_store, runtime), source)
    assert all(file.is_here for file in planned_files((source,), runtime)[source.name])


def test_plan_counts_what_the_selection_leaves(file_store: ArtifactStore, tmp_path: Path):
    for name, data in published(tmp_path).items():
        (tmp_path / name).write_bytes(data)
    part = Selection(folders=("gqa",), part="train", held_out_ratio=0.1)
    source = mix_at(str(tmp_path), expected_records=1000, selection=part)
    held_out = source.model_copy(
        update={"name": "h", "selection": part.model_copy(update={"part": "held_out"})}
    )
    evaluation = EvaluationConfig(source=held_out)
    config = PipelineConfig(name="x", sources=(source,), evaluation=evaluation)
    plan = plan_run(config, runtime_of(file_store, tmp_path))
    units = {(stage.stage, stage.source): stage.num_units for stage in plan.stages}
    assert units[Stage.EXTRACT_ATTENTION, "mix"] == 900
    assert units[Stage.EVALUATE, "h"] == 100
    assert plan.fetch_bytes == 0


@pytest.mark.parametrize("gzip", [False, True])
def test_what_is_rewritten_or_copied_takes_room_too(
    s3_store: ArtifactStore, tmp_path: Path, gzip: bool
):
    sizes = {name: len(data) for name, data in published(tmp_path, gzip).items()}
    renamed = {"ocr_vqa.tar": "ocr_vqa.tar.gz"} if gzip else {}
    for name, data in published(tmp_path, gzip).items():
        s3_store.storage.put(f"lake/{renamed.get(name, name)}", data)
    root = s3_store.storage.uri("lake")
    runtime = runtime_of(s3_store, tmp_path)

    def extra(source: Source) -> tuple[int, int]:
        plan = plan_run(PipelineConfig(name="x", sources=(source,)), runtime)
        return plan.convert_bytes, plan.copied_bytes

    mix = mix_at(root)
    tar = ImageArchive(file=f"{root}/{renamed.get('ocr_vqa.tar', 'ocr_vqa.tar')}", folder="ocr_vqa")
    mix = mix.model_copy(update={"images": (mix.images[0], tar)})
    rewritten = sizes["ocr_vqa.tar"] if gzip else 0
    assert extra(mix) == (rewritten, 0)
    copied = sizes["images.zip"] + sizes["ocr_vqa.tar"]
    assert extra(mix.model_copy(update={"copy_images": True})) == (rewritten, copied)
    parquet(tmp_path / "a.parquet")
    size = (tmp_path / "a.parquet").stat().st_size
    assert extra(ParquetSource(name="hub", files=(f"{tmp_path}/a.parquet",))) == (size, 0)


def test_files_read_in_place_are_not_counted_as_downloads(s3_store: ArtifactStore, tmp_path: Path):
    for name, data in published(tmp_path).items():
        s3_store.storage.put(f"lake/{name}", data)
    runtime = runtime_of(s3_store, tmp_path)

    def waiting(**settings: Any) -> set[str]:
        source = mix_at(s3_store.storage.uri("lake"), **settings)
        files = planned_files((source,), runtime)[source.name]
        assert {f.uri for f in waiting_files((source,), runtime)} == {
            file.uri for file in files if not file.is_here
        }
        return {file.uri.rpartition("/")[2] for file in files if not file.is_here}

    assert waiting() == {"mix.json"}
    assert waiting(copy_images=True) == {"mix.json", "images.zip", "ocr_vqa.tar"}


def test_server_that_has_gone_away_does_not_stop_who_has_the_files(
    file_store: ArtifactStore, tmp_path: Path
):
    with file_server() as leaving:
        for name, data in published(tmp_path).items():
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


def test_conversions_of_other_files_or_settings_are_not_reused(
    file_store: ArtifactStore, tmp_path: Path
):
    def rows(number: int, **columns: str) -> str:
        path = tmp_path / f"{'-'.join(columns.values())}{number}.parquet"
        pq.write_table(pa.Table.from_pylist([{"image": picture(number), **columns}]), path)
        return str(path)

    fetcher = Fetcher(StageRun(file_store, runtime_of(file_store, tmp_path)))
    same = [rows(number, question="same", a_b="x", c="y") for number in range(4)]
    sources = [
        ParquetSource(name="p", files=(*same, rows(4, question="old", a_b="x", c="y"))),
        ParquetSource(name="p", files=(*same, rows(4, question="new", a_b="x", c="y"))),
    ]
    for columns in (("a_b", "c"), ("c", "a_b"), ("a_b",)):
        sources.append(sources[0].model_copy(update={"answer_columns": columns}))
    made = [local_records(fetcher, source).records.path for source in sources]
    assert len(set(made)) == len(sources)
    assert "old" in made[0].read_text()
    assert "new" in made[1].read_text()
    assert [local_records(fetcher, source).records.path for source in sources] == made
