"""The build-jsonl stage: rows, statistics, shards, and sources of which nothing can be used."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from data_contracts.configs import RecordsConfig
from data_contracts.sources import LlavaMixSource, Selection
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import NoUsableRecords, TooManyRejects, build_jsonl
from tasks.download import download
from tasks.sources.files import ChangedFile, load_image, read_source_file
from tests.artifacts import shard_reads, stage_run
from tests.mixes import mix_record, write_image, write_small_mix


def build(store: ArtifactStore, source: LlavaMixSource, **settings):
    run = stage_run(store)
    return build_jsonl(run, download(run, source), source, RecordsConfig(**settings))


def test_rows_and_their_statistics(store: ArtifactStore, tmp_path: Path):
    ref = build(store, write_small_mix(tmp_path))
    rows = store.read_frame(ref)
    assert rows.height == 10
    assert store.manifest(ref).statistics == {
        "status.duplicate": 1,
        "status.malformed": 1,
        "status.missing_image": 1,
        "status.ok": 6,
        "status.text_only": 1,
    }
    usable = rows.filter(rows["status"] == "ok")
    for row in usable.iter_rows(named=True):
        assert load_image(store, row["image_uri"], row["image_sha256"]).size[1] == 30
        assert row["kind"] == {"gqa": "natural", "ocr_vqa": "textual"}[row["dataset"]]


def test_later_turns_that_are_left_out_are_told(
    memory_store: ArtifactStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Of a mix with ten questions per image, nine tenths were left out without a word."""
    write_image(tmp_path / "images/a.png")
    record = mix_record("one", "a.png")
    later = [{"from": "human", "value": question} for question in ("and ?", "or ?")]
    records = [{**record, "conversations": [*record["conversations"], *later]}]
    # Nobody could ask these, whatever the settings.
    records += [{**records[0], "image": "gone.png"}, {**mix_record("t", None), **records[0]}]
    del records[-1]["image"]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    source = LlavaMixSource(name="m", records=f"{tmp_path}/mix.json", images=f"{tmp_path}/images")
    ref = build(memory_store, source)
    assert memory_store.manifest(ref).statistics["skipped.later_turn"] == 2
    told = (
        "source 'm': 2 questions of later turns left unasked; `records: {turns: all}` asks them too"
    )
    assert caplog.messages.count(told) == 1
    every = build(memory_store, source, turns="all")
    assert memory_store.manifest(every).statistics["status.ok"] == 3
    assert caplog.messages.count(told) == 1


def test_shards_hold_every_row_once_in_order(file_store: ArtifactStore, tmp_path: Path):
    source = write_small_mix(tmp_path, num_images=20)
    whole = file_store.read_frame(build(file_store, source))
    ref = build(file_store, source, rows_per_shard=5)
    assert [shard.num_rows for shard in file_store.manifest(ref).shards] == [4, 5, 5, 5, 5]
    assert file_store.read_frame(ref).equals(whole)


def test_settings_and_source_name_are_identity_shard_size_alone_is_not(
    file_store: ArtifactStore, tmp_path: Path
):
    source = write_small_mix(tmp_path)
    ref = build(file_store, source)
    assert build(file_store, source, rows_per_shard=100) == ref
    assert build(file_store, source, turns="all") != ref
    assert build(file_store, source, max_records=3) != ref
    assert build(file_store, source.model_copy(update={"name": "other"})) != ref


def test_subset(file_store: ArtifactStore, tmp_path: Path):
    ref = build(file_store, write_small_mix(tmp_path, num_images=20), max_records=7)
    assert file_store.manifest(ref).statistics["status.ok"] == 7


def test_nothing_usable_says_why(file_store: ArtifactStore, tmp_path: Path):
    write_image(tmp_path / "images/a.png")
    records = [mix_record("t", None), mix_record("u", None), mix_record("m", "a.png", "<image>")]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    source = LlavaMixSource(name="dry", records=f"{tmp_path}/mix.json", images=f"{tmp_path}/images")
    message = r"source 'dry': not one .*: 2 text_only, 1 no_question\); the first: .*; check"
    with pytest.raises(NoUsableRecords, match=message):
        build(file_store, source)


def test_a_selection_that_leaves_nothing_over_is_named(file_store: ArtifactStore, tmp_path: Path):
    """The records that it does not apply to were blamed, those that have no image."""
    source = write_small_mix(tmp_path, num_images=3)
    wrong = source.model_copy(update={"selection": Selection(folders=("gpa",))})
    message = r"; left out by `selection`: \d+ other_folder\).*; check `selection`, `records` and"
    with pytest.raises(NoUsableRecords, match=message):
        build(file_store, wrong)


def test_a_rerun_reads_no_more_than_one_reason(
    file_store: ArtifactStore, tmp_path: Path, reads: Counter[str]
):
    """All questions were read, only to name the first that cannot be asked."""
    source = write_small_mix(tmp_path, num_images=12)
    settings = {"rows_per_shard": 1, "max_failure_rate": 0.5, "tolerated_failures": 0}
    ref = build(file_store, source, **settings)
    assert sum(shard_reads(file_store, ref, reads)) == 0
    with pytest.raises(TooManyRejects, match="secret"):
        build(file_store, source, **settings | {"max_failure_rate": 0.0})
    read = shard_reads(file_store, ref, reads)
    malformed = [frame["status"].is_in(["malformed"]).any() for frame in file_store.frames(ref)]
    place = malformed.index(True)
    assert read == [1] * (place + 1) + [0] * (len(read) - place - 1)
    assert place < len(read) - 1


def test_empty_list_of_records(file_store: ArtifactStore, tmp_path: Path):
    (tmp_path / "mix.json").write_text("[]")
    source = LlavaMixSource(name="dry", records=f"{tmp_path}/mix.json", images=f"{tmp_path}")
    with pytest.raises(NoUsableRecords, match=r"\(of all rows: none\)"):
        build(file_store, source)


def test_a_file_edited_in_place_is_noticed_when_read(file_store: ArtifactStore, tmp_path: Path):
    write_image(tmp_path / "a.png")
    with pytest.raises(ChangedFile, match=r"a.png: changed since"):
        read_source_file(file_store, f"{tmp_path}/a.png", "0" * 64)
    with pytest.raises(ChangedFile, match=r"b.png: gone since"):
        read_source_file(file_store, f"{tmp_path}/b.png", None)


class TestPlaceForTheRows:
    """Rows go through files on the local disk, which nobody but the stage should ever see."""

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Where temporary files are made, and nothing else."""
        place = tmp_path / "temporary"
        place.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        return place

    def test_nothing_is_left_there(self, file_store: ArtifactStore, tmp_path: Path, place: Path):
        build(file_store, write_small_mix(tmp_path))
        assert list(place.iterdir()) == []

    @pytest.mark.parametrize("step", ["build_records", "_require_usable"])
    def test_nor_by_a_build_that_is_interrupted(
        self,
        file_store: ArtifactStore,
        memory_store: ArtifactStore,
        tmp_path: Path,
        place: Path,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
    ):
        source = write_small_mix(tmp_path)
        seen: list[Path] = []

        def stop(*_: object) -> None:
            seen.extend(place.rglob("*"))
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(f"tasks.build_jsonl.{step}", stop)
            with pytest.raises(KeyboardInterrupt):
                build(file_store, source)
        assert seen
        assert list(place.iterdir()) == []
        again, anew = build(file_store, source), build(memory_store, source)
        assert file_store.manifest(again).shards == memory_store.manifest(anew).shards
