"""Data laid out as published: the mix's JSON, GQA's images.zip and OCR-VQA's tar on a server of
objects, read in place; on S3 through the whole pipeline with the reference model."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest

from data_contracts.configs import (
    EvaluationConfig,
    ExtractionConfig,
    ModelConfig,
    PipelineConfig,
    RecordsConfig,
)
from data_contracts.enums import Method, Stage
from data_contracts.runtime import DownloadSettings, RuntimeConfig
from data_contracts.sources import ImageArchive, LlavaMixSource, SceneSource, Selection
from data_contracts.training import TrainingChanges
from flows.execution import LocalExecution
from flows.run import run_pipeline
from tasks.artifacts.admin import list_artifacts
from tasks.artifacts.store import ArtifactStore
from tasks.sources.scene_files import write_scenes


def publish(store: ArtifactStore, folder: Path) -> LlavaMixSource:
    """Upload a mix as its parts are published, two things broken as they are there."""
    scenes = SceneSource(name="s", num_images=24, seed=5, print_scale=4.0)
    written = write_scenes(folder, scenes)
    images = Path(str(written.images))
    gqa, ocr = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(gqa, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/", b"")
        for path in sorted((images / "gqa/images").iterdir()):
            archive.write(path, f"images/{path.name}")
    with tarfile.open(fileobj=ocr, mode="w") as archive:
        for path in sorted((images / "ocr_vqa/images").iterdir()):
            archive.add(path, f"./ocr_vqa/images/{path.name}")
        info = tarfile.TarInfo("ocr_vqa/images/1437717772.jpg")
        info.size = 1000
        archive.addfile(info, io.BytesIO(next((images / "ocr_vqa/images").iterdir()).read_bytes()))
    records = json.loads(Path(str(written.records)).read_text())
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a"}]
    for name in ("ocr_vqa/images/1437717772.jpg", "gqa/images/gone.jpg", "coco/train2017/1.jpg"):
        records.append({"id": name, "image": name, "conversations": talk})
    store.storage.put("lake/mix.json", json.dumps(records).encode())
    store.storage.put("lake/gqa/images.zip", gqa.getvalue())
    store.storage.put("lake/ocr_vqa.tar", ocr.getvalue())
    uri = store.storage.uri
    return LlavaMixSource(
        name="mix",
        records=uri("lake/mix.json"),
        images=(
            ImageArchive(file=uri("lake/gqa/images.zip"), folder="gqa"),
            ImageArchive(file=uri("lake/ocr_vqa.tar"), folder="ocr_vqa"),
        ),
        selection=Selection(folders=("gqa", "ocr_vqa"), part="train", held_out_ratio=0.3),
    )


def config_for(source: LlavaMixSource) -> PipelineConfig:
    held_out = source.selection.model_copy(update={"part": "held_out"})
    return PipelineConfig(
        name="published",
        sources=(source,),
        model=ModelConfig(profile="reference"),
        records=RecordsConfig(turns="all"),
        extraction=ExtractionConfig(max_new_tokens=8),
        training=TrainingChanges(batch_size=8),
        evaluation=EvaluationConfig(
            source=source.model_copy(update={"name": "held_out", "selection": held_out}),
            methods=(Method.BASE, Method.SDRPN),
            max_new_tokens=8,
            num_bootstrap=20,
        ),
    )


def runtime_for(store: ArtifactStore, folder: Path) -> RuntimeConfig:
    return RuntimeConfig(
        store=store.root,
        storage_options=store.storage.storage_options,
        downloads=DownloadSettings(folder=f"{folder}/here"),
    )


def assert_read_in_place(store: ArtifactStore, folder: Path, parts: dict[str, pl.DataFrame]):
    """All 24 images are read where they lie, none in two parts, and what is broken is known."""
    usable = {part: frame.filter(pl.col("status") == "ok") for part, frame in parts.items()}
    images = {part: set(frame["image_sha256"]) for part, frame in usable.items()}
    assert sum(map(len, images.values())) == len(set().union(*images.values())) == 24
    uris = pl.concat(usable.values())["image_uri"]
    assert all("#zip=" in uri or "#bytes=" in uri for uri in uris)
    assert {uri.partition("://")[0] for uri in uris} == {store.root.partition("://")[0]}
    rejects = pl.concat(parts.values()).filter(~pl.col("status").is_in(["ok", "text_only"]))
    assert sorted(rejects["status"]) == ["missing_image", "unreadable_image"]
    assert not list((folder / "here").glob("*zip*"))


@pytest.mark.slow
def test_google_cloud_storage_to_attention(gs_store: ArtifactStore, tmp_path: Path):
    """Records, a zip, a tar and the store itself are on gs://, and two workers share them."""
    config = config_for(publish(gs_store, tmp_path))
    (source,) = config.sources
    whole = source.model_copy(update={"selection": Selection(folders=("gqa", "ocr_vqa"))})
    config = config.model_copy(
        update={
            "sources": (whole,),
            "evaluation": None,
            "records": RecordsConfig(),
            "extraction": ExtractionConfig(max_new_tokens=8, rows_per_shard=16),
        }
    )
    runtime = runtime_for(gs_store, tmp_path).model_copy(update={"num_workers": 2})
    run_pipeline(config, LocalExecution(runtime), Stage.EXTRACT_ATTENTION)
    (built,) = list_artifacts(gs_store, Stage.BUILD_JSONL)
    assert_read_in_place(gs_store, tmp_path, {"all": gs_store.read_frame(built.ref)})
    assert gs_store.manifest(built.ref).statistics["skipped.other_folder"] == 1
    (extracted,) = list_artifacts(gs_store, Stage.EXTRACT_ATTENTION)
    assert extracted.num_shards > 1
    assert set(gs_store.read_frame(extracted.ref)["status"]) == {"ok"}
    again = run_pipeline(config, LocalExecution(runtime), Stage.EXTRACT_ATTENTION)
    assert again.is_reused


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_published_layout_end_to_end(s3_store: ArtifactStore, tmp_path: Path):
    store = s3_store
    config, runtime = config_for(publish(store, tmp_path)), runtime_for(store, tmp_path)
    outcome = run_pipeline(config, LocalExecution(runtime))
    assert outcome.results is not None
    assert set(outcome.results.methods) == {Method.BASE, Method.SDRPN}
    assert outcome.results.methods[Method.BASE].accuracy.value > 0.3  # readable print: it reads

    parts = {}
    for item in list_artifacts(store, Stage.BUILD_JSONL):
        manifest = store.manifest(item.ref)
        parts[manifest.recipe.config["selection"]["part"]] = store.read_frame(item.ref)
        assert manifest.statistics["skipped.other_folder"] == 1
    assert_read_in_place(store, tmp_path, parts)

    again = run_pipeline(config, LocalExecution(runtime))
    assert again.is_reused
