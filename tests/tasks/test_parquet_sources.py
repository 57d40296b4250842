"""Parquet files whose rows carry their images become questions and images."""

import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.configs import RecordsConfig
from data_contracts.sources import (
    ParquetSource,
)
from sdrpn_core.records import build_records
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.fetching.remote import DownloadError
from tasks.planning.files import planned_files
from tasks.sources.local_records import local_records
from tasks.sources.parquet_images import convert_parquet
from tasks.sources.record_stream import SourceError, read_records
from tasks.sources.source_fetcher import Fetcher
from tests.source_files import picture, questions, runtime_of, write_parquet


def test_parquet_rows_with_image_bytes(file_store: ArtifactStore, tmp_path: Path):
    write_parquet(tmp_path / "a.parquet")
    source = ParquetSource(name="hub", files=(f"{tmp_path}/a.parquet",), id_column="question_id")
    rows = sorted(questions(file_store, source, tmp_path), key=lambda row: row["source_id"])
    assert [row["status"] for row in rows] == ["ok"] * 5
    assert [row["answers"] for row in rows] == [[f"a{n}"] for n in range(5)]
    assert len({row["image_sha256"] for row in rows}) == 3
    assert {row["dataset"] for row in rows} == {"hub"}


def test_parquet_files_by_pattern(store: ArtifactStore, tmp_path: Path):
    for number, name in enumerate(("data/train-0.parquet", "data/train-1.parquet")):
        write_parquet(
            tmp_path / "local.parquet", question=[f"is it {number} {n} ?" for n in range(5)]
        )
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
    write_parquet(tmp_path / "a.parquet", image=images, question=questions_given)
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
        (
            {"question": pa.array([*[b"what \xff"] * 4, b"what ?"]).view(pa.string())},
            "column 'question' cannot be read ('utf-8' codec can't decode byte 0xff",
        ),
        (
            {"answer": pa.array([*[1 << 60] * 4, 0], pa.timestamp("us"))},
            "column 'answer' cannot be read (date value out of range",
        ),
        (
            {"answer": pa.array([0] * 5, pa.timestamp("s", "Mars/Crater"))},
            "column 'answer' cannot be read (",
        ),
    ],
)
def test_a_parquet_row_that_cannot_be_converted_is_a_reject(
    tmp_path: Path, columns: dict[str, Any], reason: str
):
    write_parquet(tmp_path / "a.parquet", **columns)
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
        ({"files": ("{folder}/odd.parquet",)}, r"is no whole Parquet file \('utf-8' codec"),
        ({"files": ("{folder}/gone.parquet",)}, r"gone.parquet: no such file"),
    ],
)
def test_parquet_errors_are_one_line(
    file_store: ArtifactStore, tmp_path: Path, change: dict[str, Any], message: str
):
    write_parquet(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "torn.parquet").write_bytes(whole[:-9])
    (tmp_path / "odd.parquet").write_bytes(whole.replace(b"question", b"quest\xff\xffn"))
    change = {k: (v[0].format(folder=tmp_path),) if k == "files" else v for k, v in change.items()}
    given = {"files": (f"{tmp_path}/a.parquet",)} | change
    with pytest.raises(SourceError, match=message) as caught:
        questions(file_store, ParquetSource(name="hub", **given), tmp_path)
    assert "\n" not in str(caught.value)


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
