"""What a plan says of a source's files before they are fetched, copied or rewritten."""

from pathlib import Path
from typing import Any

import pytest

from data_contracts.configs import EvaluationConfig, PipelineConfig
from data_contracts.enums import Stage
from data_contracts.sources import (
    ImageArchive,
    ParquetSource,
    RemoteFile,
    Selection,
    Source,
)
from flows.dry_run import plan_run
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.download import download
from tasks.planning.files import planned_files, waiting_files
from tests.file_server import FileServer
from tests.source_files import mix_at, published_mix, runtime_of, write_parquet


def test_size_digest_and_licence_are_known_before_a_download(
    server: FileServer, file_store: ArtifactStore, tmp_path: Path
):
    for name, data in published_mix().items():
        server.add(f"/{name}", data)
    source = mix_at(server.root)
    licensed = RemoteFile(uri=f"{server.root}/mix.json", licence="CC BY 4.0")
    source = source.model_copy(update={"records": licensed})
    files = planned_files((source,), runtime_of(file_store, tmp_path))[source.name]
    sizes = {name: len(data) for name, data in published_mix().items()}
    assert {f.uri.rpartition("/")[2]: f.num_bytes for f in files} == sizes
    assert files[0].licence == "CC BY 4.0"
    assert not any(file.is_here for file in files)
    assert not (tmp_path / "here").exists()

    runtime = runtime_of(file_store, tmp_path)
    download(StageRun(file_store, runtime), source)
    assert all(file.is_here for file in planned_files((source,), runtime)[source.name])


def test_plan_counts_what_the_selection_leaves(file_store: ArtifactStore, tmp_path: Path):
    for name, data in published_mix().items():
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
    sizes = {name: len(data) for name, data in published_mix(gzip).items()}
    renamed = {"ocr_vqa.tar": "ocr_vqa.tar.gz"} if gzip else {}
    for name, data in published_mix(gzip).items():
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
    write_parquet(tmp_path / "a.parquet")
    size = (tmp_path / "a.parquet").stat().st_size
    assert extra(ParquetSource(name="hub", files=(f"{tmp_path}/a.parquet",))) == (size, 0)


def test_files_read_in_place_are_not_counted_as_downloads(s3_store: ArtifactStore, tmp_path: Path):
    for name, data in published_mix().items():
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
