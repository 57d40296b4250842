"""Sources as they are published, made small, and the questions that come of them."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.configs import RecordsConfig
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import ImageArchive, LlavaMixSource, Selection, Source
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import build_jsonl
from tasks.download import download
from tasks.sources.files import load_image
from tests.bad_corpora import GOOD, encoded
from tests.file_server import QUICK
from tests.mixes import mix_record


def picture(number: int, format: str = "PNG") -> bytes:
    """Another picture for another number."""
    return encoded(format, GOOD.rotate(number, expand=True))


def runtime_of(store: ArtifactStore, folder: Path) -> RuntimeConfig:
    """With little patience, and downloads below the folder."""
    settings = QUICK.model_copy(update={"folder": f"{folder}/here"})
    return RuntimeConfig(
        store=store.root, storage_options=store.storage.storage_options, downloads=settings
    )


def runtime_of_silence(folder: Path) -> RuntimeConfig:
    """With a store whose server does not answer: nobody listens on the discard port."""
    options = {
        "endpoint_url": "http://127.0.0.1:9",
        "key": "k",
        "secret": "s",
        "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 1},
    }
    downloads = QUICK.model_copy(update={"folder": str(folder)})
    return RuntimeConfig(store="s3://lake/store", storage_options=options, downloads=downloads)


def questions(
    store: ArtifactStore, source: Source, folder: Path, **settings: Any
) -> list[dict[str, Any]]:
    """Rows of ``build-jsonl``; the images of those that are usable can be read."""
    run = StageRun(store, runtime_of(store, folder))
    ref = build_jsonl(run, download(run, source), source, RecordsConfig(**settings))
    rows = store.read_frame(ref).to_dicts()
    for row in rows:
        if row["status"] == "ok":
            load_image(store, row["image_uri"], row["image_sha256"])
    return rows


def published_mix(gzip: bool = False) -> dict[str, bytes]:
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
    """The source that reads ``published_mix`` below an address."""
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
    """Status by the record's id."""
    return {row["source_id"]: row["status"] for row in rows}


def write_parquet(path: Path, **columns: Any) -> None:
    """Five rows with questions about three pictures, but for the columns that are given."""
    given = {
        "image": [{"bytes": picture(n % 3, "JPEG"), "path": f"{n}.jpg"} for n in range(5)],
        "question": [f"what is {n} ?" for n in range(5)],
        "answers": [[f"a{n}", "b"] for n in range(5)],
        "question_id": list(range(5)),
    }
    pq.write_table(pa.table(given | columns), path, row_group_size=2)
