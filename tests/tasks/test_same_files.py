"""Images that were touched are the same images: what was made of them stays."""

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_contracts.configs import PipelineConfig, RecordsConfig
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import LlavaMixSource
from flows.dry_run import plan_run
from tasks.artifacts.admin import collect_garbage, list_artifacts
from tasks.artifacts.stage import NotMade
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import build_jsonl
from tasks.download import download
from tasks.sources.files import load_image
from tests.artifacts import stage_run
from tests.e2e.command_line import sdrpn
from tests.mixes import mix_record, write_image, write_small_mix


@pytest.fixture(params=[False, True], ids=["in place", "copied"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> LlavaMixSource:
    return write_small_mix(tmp_path / "data", copy_images=request.param)


def touch(folder: Path, days: int = 1) -> None:
    """As a copy without dates does, or a checkout."""
    for path in folder.rglob("*.png"):
        then = path.stat().st_mtime - timedelta(days=days).total_seconds()
        os.utime(path, (then, then))


def num_downloads(store: ArtifactStore) -> int:
    return len(list_artifacts(store, Stage.DOWNLOAD))


def test_touched_images_are_read_again_and_nothing_else_is_made(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    """Ids hold dates: every stage was made again, training too, for the same bytes."""
    first = download(stage_run(file_store), source)
    questions = build_jsonl(stage_run(file_store), first, source, RecordsConfig())
    for days in (1, 2):
        touch(tmp_path / "data", days)
        for _ in range(2):  # made, and found there
            ref = download(stage_run(file_store), source)
            assert ref == first
        assert num_downloads(file_store) == 1 + days
    started = []
    run = stage_run(file_store, on_start=started.append)
    assert build_jsonl(run, ref, source, RecordsConfig()) == questions
    assert started == []
    for row in file_store.read_frame(questions).filter(status="ok").to_dicts():
        load_image(file_store, row["image_uri"], row["image_sha256"])


def test_the_command_line_tells_which_download_stands_for_one(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    """No later stage names the second one, and nobody was told why."""
    first = download(stage_run(file_store), source)
    touch(tmp_path / "data")
    assert download(stage_run(file_store), source) == first
    (touched,) = (i.ref for i in list_artifacts(file_store, Stage.DOWNLOAD) if i.ref != first)
    for ref, stand_in in ((first, None), (touched, str(first))):
        shown = sdrpn("artifacts", "show", ref, "--store", file_store.root)
        assert json.loads(shown.stdout)["same_as"] == stand_in


def test_a_plan_says_that_it_does_not_read_images(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    """It counted all stages as still to be made, and nobody was told that a run may make none."""

    def problems() -> list[str | None]:
        plan = plan_run(PipelineConfig(name="x", sources=(source,)), runtime)
        return [stage.made.problem for stage in plan.unknown_stages]

    runtime = RuntimeConfig(store=file_store.root)
    first = download(stage_run(file_store), source)
    touch(tmp_path / "data")
    (reason,) = problems()
    assert reason is not None
    assert f"whether they are those of {first}, which then stays" in reason
    download(stage_run(file_store), source)
    assert problems() == []
    write_image(tmp_path / "data" / "images" / "gqa" / "images" / "new.png")
    mix = tmp_path / "data" / "mix.json"
    mix.write_text(
        json.dumps([*json.loads(mix.read_text()), mix_record("n", "gqa/images/new.png")])
    )
    assert problems() == []


def test_chats_that_were_malformed_are_no_part_of_what_was_made_of_them_then(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path, monkeypatch: Any
):
    """Their questions had the id of the rows that said why they could not be read."""
    mix = tmp_path / "data" / "mix.json"
    records = json.loads(mix.read_text())
    talk = records[0].pop("conversations")
    records[0]["messages"] = [{"role": "user", "content": talk[0]["value"]}]
    mix.write_text(json.dumps(records))
    with monkeypatch.context() as before:
        for module in ("tasks.sources.survey", "tasks.sources.record_stream"):
            before.setattr(f"{module}.llava_record", lambda record: record)
        old = download(stage_run(file_store), source)
        malformed = build_jsonl(stage_run(file_store), old, source, RecordsConfig())
    new = download(stage_run(file_store), source)
    assert new != old
    questions = build_jsonl(stage_run(file_store), new, source, RecordsConfig())
    counts = [file_store.manifest(ref).statistics for ref in (malformed, questions)]
    assert [found["status.malformed"] for found in counts] == [2, 1]


def test_changed_images_are_others(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    first = download(stage_run(file_store), source)
    write_image(tmp_path / "data" / "images" / "gqa" / "images" / "0.png", 99, (40, 30))
    assert download(stage_run(file_store), source) != first


def test_the_same_images_elsewhere_are_others_where_rows_point_there(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    first = download(stage_run(file_store), source)
    shutil.move(tmp_path / "data" / "images", tmp_path / "moved")
    moved = source.model_copy(update={"images": f"{tmp_path}/moved"})
    assert (download(stage_run(file_store), moved) == first) is source.copy_images


def test_what_stood_for_it_may_go(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    first = download(stage_run(file_store), source)
    touch(tmp_path / "data")
    assert download(stage_run(file_store), source) == first
    file_store.discard(first)
    alone = download(stage_run(file_store), source)
    assert alone != first
    assert file_store.is_committed(alone)


def test_forced_anew_it_stands_for_itself(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    """What is damaged in the store was mended in one that nobody was given."""
    first = download(stage_run(file_store), source)
    touch(tmp_path / "data")
    assert download(stage_run(file_store), source) == first
    forced = download(stage_run(file_store, force=True), source)
    assert forced != first
    assert download(stage_run(file_store), source) == forced


def test_an_earlier_one_that_lost_a_file_stands_for_none(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    first = download(stage_run(file_store), source)
    lost = file_store.read_frame(first).filter(pl.col("uri").str.starts_with(first.prefix))
    file_store.storage.delete([lost["uri"][-1]])
    touch(tmp_path / "data")
    second = download(stage_run(file_store), source)
    assert second != first
    build_jsonl(stage_run(file_store), second, source, RecordsConfig())


def test_one_that_was_made_again_stands_no_more(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    first = download(stage_run(file_store), source)
    touch(tmp_path / "data")
    assert download(stage_run(file_store), source) == first
    manifest = f"{first.prefix}/manifest.json"
    file_store.storage.put(manifest, file_store.storage.read(manifest) + b"\n")
    assert download(stage_run(file_store), source) != first


def test_a_run_that_is_stopped_before_it_has_looked_looks_later(
    source: LlavaMixSource,
    file_store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """All that had been made was made again."""
    first = download(stage_run(file_store), source)
    touch(tmp_path / "data")

    def stop(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("tasks.download.with_same_files", stop)
        with pytest.raises(KeyboardInterrupt):
            download(stage_run(file_store), source)
    looks = stage_run(file_store, only_looks=True)
    assert download(looks, source) != first
    assert download(stage_run(file_store), source) == first
    assert download(looks, source) == first


def test_a_forced_run_that_is_stopped_leaves_no_note_of_before(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    """Later stages were given the files of before, of which the new ones differ."""
    first = download(stage_run(file_store), source)
    touch(tmp_path / "data")
    assert download(stage_run(file_store), source) == first
    (second,) = {item.ref for item in list_artifacts(file_store, Stage.DOWNLOAD)} - {first}
    picture = tmp_path / "data" / "images" / "gqa" / "images" / "0.png"
    before = picture.stat()
    data = bytearray(picture.read_bytes())
    write_image(picture, 99, (40, 30))
    picture.write_bytes(picture.read_bytes()[: len(data)].ljust(len(data), b"\0"))
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    file_store.storage.delete([f"{second.prefix}/manifest.json"])
    receipts = [f"{second.prefix}/receipts/{number:05d}.json" for number in range(2)]
    file_store.storage.delete(receipts)
    assert download(stage_run(file_store), source) == second


@pytest.mark.parametrize("note", [b"{", b'{"ref": "nonsense", "is_settled": true}'])
def test_a_damaged_note_is_none(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path, note: bytes
):
    first = download(stage_run(file_store), source)
    file_store.storage.put(f"{first.prefix}/same_as.json", note)
    assert download(stage_run(file_store), source) == first
    touch(tmp_path / "data")
    assert download(stage_run(file_store), source) == first


def test_a_damaged_manifest_stands_for_none(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    first = download(stage_run(file_store), source)
    touch(tmp_path / "data")
    assert download(stage_run(file_store), source) == first
    file_store.storage.put(f"{first.prefix}/manifest.json", b"{")
    assert download(stage_run(file_store), source) != first


def test_damage_of_an_earlier_download_is_none_of_a_later_ones(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    first = download(stage_run(file_store), source)
    shard = file_store.manifest(first).shards[-1]
    file_store.storage.put(f"{first.prefix}/{shard.key}", b"torn")
    touch(tmp_path / "data")
    assert download(stage_run(file_store), source) != first


def test_looking_and_collecting_leave_it_as_it_is(
    source: LlavaMixSource, file_store: ArtifactStore, tmp_path: Path
):
    first = download(stage_run(file_store), source)
    touch(tmp_path / "data")
    looks = stage_run(file_store, only_looks=True)
    with pytest.raises(NotMade):
        download(looks, source)
    download(stage_run(file_store), source)
    collect_garbage(file_store, older_than=timedelta(days=-1), dry_run=False)
    assert download(looks, source) == first
