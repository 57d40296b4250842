"""Listing, describing and collecting artifacts."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest

from data_contracts.artifact import ArtifactRef, Manifest, Recipe, ShardEntry
from data_contracts.enums import Stage
from tasks.artifacts.admin import (
    collect_garbage,
    committed_artifacts,
    describe,
    list_artifacts,
    stored_bytes,
)
from tasks.artifacts.errors import ArtifactNotFound, CorruptArtifact
from tasks.artifacts.stage import NotMade, begin_stage, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.storage.storage import Storage
from tests.artifacts import (
    files_recipe,
    keys_of,
    make_file_shard,
    make_source_shard,
    source_frame,
    source_recipe,
    stage_run,
)


class StoreThatLosesWhatItReads(ArtifactStore):
    """Another process discards what the download stage made, as soon as one looks at it."""

    discards_before: bool = False

    def manifest(self, ref: ArtifactRef) -> Manifest:
        if ref.stage is not Stage.DOWNLOAD:
            return super().manifest(ref)
        if self.discards_before:
            self.discard(ref)
        try:
            return super().manifest(ref)
        except CorruptArtifact:
            self.discard(ref)
            raise

    def receipts(self, recipe: Recipe) -> list[ShardEntry | None]:
        found = super().receipts(recipe)
        self.discard(recipe.ref)
        return found


class StoreThatARunGoesOnIn(ArtifactStore):
    """Another process finishes the download stage when one looks at the report."""

    def manifest(self, ref: ArtifactRef) -> Manifest:
        if ref.stage is Stage.REPORT:
            run_stage(stage_run(self), source_recipe(2), make_source_shard)
        return super().manifest(ref)


NEVER = timedelta(days=1)
AT_ONCE = timedelta(seconds=-5)  # S3 gives whole seconds


def age(store: ArtifactStore, by: timedelta) -> None:
    """Make everything in a folder as if it had been written so long ago."""
    then = (datetime.now(UTC) - by).timestamp()
    for path in Path(store.root).rglob("*"):
        os.utime(path, (then, then))


class TestListing:
    def test_lists_in_stage_order_with_progress(self, store: ArtifactStore) -> None:
        report = run_stage(stage_run(store), files_recipe(1), make_file_shard)
        source = run_stage(stage_run(store), source_recipe(2), make_source_shard)
        store.writer(source_recipe(3)).put_frame(0, source_frame(0))
        store.storage.put("download/notes/readme.txt", b"not an artifact")
        done, open_, files = list_artifacts(store)
        assert (done.ref, files.ref) == (source, report)
        assert (done.is_committed, done.num_done, done.num_shards, done.num_rows) == (True, 2, 2, 8)
        assert (open_.is_committed, open_.num_done, open_.num_rows) == (False, 1, 4)
        assert abs(datetime.now(UTC) - open_.created_at) < timedelta(minutes=1)
        assert list_artifacts(store, Stage.REPORT) == [files]

    def test_blobs_and_resume_points_were_not_in_the_sizes(self, store: ArtifactStore) -> None:
        """A store of 133 MiB was listed as one of 10."""
        writer = store.writer(source_recipe(2))
        writer.put_frame(0, source_frame(0))
        other = run_stage(stage_run(store), files_recipe(1), make_file_shard)
        before, unchanged = stored_bytes(store, [writer.ref, other])
        writer.put_blob(bytes(1000), ".jpg")
        writer.put_blob(bytes(1000), ".jpg")  # kept once, as it is named by content
        writer.save_checkpoint(1, {"weights": bytes(500)})
        after, same = stored_bytes(store, [writer.ref, other])
        assert 1500 < after - before < 2000
        assert same == unchanged
        (shard,) = store.manifest(other).shards
        assert same > shard.num_bytes

    def test_an_empty_store_lists_nothing(self, store: ArtifactStore) -> None:
        assert list_artifacts(store) == []

    def test_looking_writes_nothing(self, store: ArtifactStore) -> None:
        """A listing began anew what another process had discarded meanwhile."""
        store.writer(source_recipe(2)).put_frame(0, source_frame(0))
        looking = StoreThatLosesWhatItReads(store.root, store.storage.storage_options)
        assert list_artifacts(looking) == []
        assert list_artifacts(store) == []
        assert not store.storage.find("download")

    @pytest.mark.parametrize("of", ["committed", "unfinished", "damaged"])
    def test_what_another_process_discards_meanwhile_is_left_out(
        self, memory_store: ArtifactStore, of: str
    ) -> None:
        """Somebody's --force ended a run that looked for attention to use again."""
        writer = memory_store.writer(source_recipe(1))
        writer.put_frame(0, source_frame(0))
        if of == "committed":
            writer.commit()
        elif of == "damaged":
            memory_store.storage.put(f"{writer.ref.prefix}/manifest.json", b"{}")
        run_stage(stage_run(memory_store), files_recipe(1), make_file_shard)
        looking = StoreThatLosesWhatItReads(memory_store.root)
        looking.discards_before = of == "committed"
        (report,) = list_artifacts(looking)
        assert report.ref.stage is Stage.REPORT

    def test_describe(self, memory_store: ArtifactStore) -> None:
        writer = memory_store.writer(source_recipe(2, seed=3))
        writer.put_frame(1, source_frame(1))
        facts = describe(memory_store, writer.ref)
        assert (facts["is_committed"], facts["missing_shards"]) == (False, [0])
        run_stage(stage_run(memory_store), source_recipe(2, seed=3), make_source_shard)
        facts = describe(memory_store, writer.ref)
        assert (facts["is_committed"], facts["num_rows"]) == (True, 8)
        assert facts["recipe"]["config"] == {"seed": 3}
        with pytest.raises(ArtifactNotFound):
            describe(memory_store, source_recipe(9).ref)


class TestDamage:
    """One damaged manifest blocked listing, reuse and finding the newest for the whole store."""

    def damaged(self, store: ArtifactStore, name: str = "manifest.json") -> ArtifactRef:
        ref = run_stage(stage_run(store), source_recipe(1, bad=1), make_source_shard)
        store.storage.put(f"{ref.prefix}/{name}", b'{"half": ')
        return ref

    def test_damaged_manifest_is_listed_as_such_among_the_others(
        self, store: ArtifactStore
    ) -> None:
        good = run_stage(stage_run(store), source_recipe(2), make_source_shard)
        bad = self.damaged(store)
        found = {item.ref: item for item in list_artifacts(store)}
        assert found.keys() == {good, bad}
        assert found[good].is_committed
        assert found[good].problem == ""
        assert not found[bad].is_committed
        assert "manifest.json: is not a Manifest" in found[bad].problem
        assert "`sdrpn stage download --force`" in found[bad].problem
        assert "\n" not in found[bad].problem

    @pytest.mark.parametrize("name", ["recipe.json", "receipts/00000.json"])
    def test_damage_of_an_unfinished_artifact_hides_no_other(
        self, memory_store: ArtifactStore, name: str
    ) -> None:
        good = run_stage(stage_run(memory_store), source_recipe(2), make_source_shard)
        bad = self.damaged(memory_store, name)
        memory_store.storage.delete([f"{bad.prefix}/manifest.json"])
        found = {item.ref: item for item in list_artifacts(memory_store)}
        assert found[good].is_committed
        assert name in found[bad].problem

    def test_damaged_artifact_is_skipped_with_one_line(
        self, memory_store: ArtifactStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        good = run_stage(stage_run(memory_store), source_recipe(2), make_source_shard)
        bad = self.damaged(memory_store)
        found = committed_artifacts(memory_store, Stage.DOWNLOAD)
        assert [made.recipe.ref for made in found] == [good]
        (line,) = caplog.messages
        assert line.startswith("skipped: ")
        assert str(bad) in line

    def test_receipts_of_unfinished_artifacts_are_not_looked_at(
        self, memory_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each worker of an extraction asked for every receipt of that very extraction."""
        good = run_stage(stage_run(memory_store), source_recipe(2), make_source_shard)
        memory_store.writer(source_recipe(3)).put_frame(0, source_frame(0))
        read: list[str] = []
        whole = Storage.read

        def watch(storage: Storage, key: str) -> bytes:
            read.append(key)
            return whole(storage, key)

        monkeypatch.setattr(Storage, "read", watch)
        (made,) = committed_artifacts(memory_store, Stage.DOWNLOAD)
        assert made == memory_store.manifest(good)
        assert {key.rpartition("/")[2] for key in read} == {"manifest.json"}

    def test_damaged_artifact_is_not_collected_and_stops_nothing(
        self, memory_store: ArtifactStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        bad = self.damaged(memory_store)
        unfinished = memory_store.writer(source_recipe(2)).ref
        before = keys_of(memory_store, bad)
        (gone,) = collect_garbage(memory_store, older_than=AT_ONCE, dry_run=False)
        assert gone.ref == unfinished
        assert keys_of(memory_store, bad) == before
        assert caplog.messages[0].startswith("left alone: ")


class TestGarbage:
    def test_committed_artifacts_stay(self, store: ArtifactStore) -> None:
        refs = [
            run_stage(stage_run(store), source_recipe(1), make_source_shard),
            run_stage(stage_run(store), files_recipe(1), make_file_shard),
        ]
        assert collect_garbage(store, older_than=AT_ONCE, dry_run=False) == []
        assert all(store.is_committed(ref) for ref in refs)

    def test_the_note_of_a_tables_answers_stays(self, memory_store: ArtifactStore) -> None:
        """Without it, clocks would have to tell whether the table is of them."""
        run = stage_run(memory_store)
        answers = files_recipe(1).model_copy(update={"stage": Stage.EVALUATE})
        table = answers.model_copy(update={"inputs": (str(answers.ref),)})
        for recipe in (answers, table):
            run_stage(run, recipe, make_file_shard)
        assert "inputs.json" in keys_of(memory_store, table.ref)
        assert "inputs.json" not in keys_of(memory_store, answers.ref)
        assert collect_garbage(memory_store, older_than=AT_ONCE) == []

    def test_unfinished_artifacts_go_once_old(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(2))
        writer.put_frame(0, source_frame(0))
        young: list[ArtifactRef] = []
        assert collect_garbage(store, older_than=NEVER, dry_run=False, on_young=young.append) == []
        assert young == [writer.ref]
        assert writer.missing() == [1]
        young.clear()
        [gone] = collect_garbage(store, older_than=AT_ONCE, dry_run=False, on_young=young.append)
        assert young == []
        assert gone.ref == writer.ref
        assert gone.reason.startswith("all of it: never finished")
        assert list_artifacts(store) == []

    def test_what_a_run_has_just_gone_on_with_is_not_abandoned(
        self, file_store: ArtifactStore
    ) -> None:
        """After eight days a run went on, and before its first new shard all others were deleted:
        going on wrote nothing."""
        recipe = source_recipe(2)
        writer = file_store.writer(recipe)
        writer.put_frame(0, source_frame(0))
        age(file_store, timedelta(days=8))
        with pytest.raises(NotMade):
            begin_stage(stage_run(file_store, only_looks=True), recipe)
        (listed,) = collect_garbage(file_store)
        assert listed.ref == recipe.ref, "a run that only looks writes nothing"
        before = file_store.storage.read(f"{recipe.ref.prefix}/recipe.json")
        assert begin_stage(stage_run(file_store), recipe) == [1]
        assert collect_garbage(file_store, dry_run=False) == []
        assert file_store.storage.read(f"{recipe.ref.prefix}/recipe.json") == before
        path = Path(file_store.root, recipe.ref.prefix, "recipe.json")
        renewed_at = path.stat().st_mtime_ns
        run_stage(stage_run(file_store), recipe, make_source_shard)
        assert file_store.read_frame(recipe.ref).height == 8
        assert path.stat().st_mtime_ns == renewed_at, "what is new is not written again"

    def test_a_training_that_goes_on_keeps_its_resume_point(
        self, file_store: ArtifactStore
    ) -> None:
        """It has no receipt before its end, so that all of it went."""
        writer = file_store.writer(files_recipe(1))
        writer.save_checkpoint(50, {"weights": b"of half a night"})
        age(file_store, timedelta(days=8))
        begin_stage(stage_run(file_store), files_recipe(1))
        assert collect_garbage(file_store, dry_run=False) == []
        assert writer.latest_checkpoint() == (50, {"weights": b"of half a night"})

    def test_leftovers_of_a_committed_artifact_go(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        blob = writer.put_blob(b"image")
        writer.save_checkpoint(1, {"a": b"one"})
        orphan = f"{writer.ref.prefix}/shards/00000-of-00001-ffffffffffff.parquet"
        store.storage.put(orphan, b"lost a race")
        writer.put_frame(0, source_frame(0))
        writer.commit()
        young: list[ArtifactRef] = []
        assert collect_garbage(store, older_than=NEVER, dry_run=False, on_young=young.append) == []
        assert young == [writer.ref]
        [item] = collect_garbage(store, older_than=AT_ONCE, dry_run=False)
        assert not item.is_whole_artifact
        assert orphan in item.keys
        assert len(item.keys) == 3
        assert store.read_frame(writer.ref).height == 4
        assert store.read_uri(blob) == b"image"
        assert collect_garbage(store, older_than=AT_ONCE) == []

    def test_images_are_deleted_side_by_side(
        self, file_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One after another, which took an hour for a hundred thousand on a service."""
        writer = file_store.writer(source_recipe(1))
        for number in range(2):
            writer.put_blob(b"%d" % number)
        delete, both = Storage.delete, Barrier(2, timeout=20)

        def delete_with_the_other(storage: Storage, keys: Sequence[str]) -> None:
            if "/blobs/" in keys[0]:
                both.wait()
            delete(storage, keys)

        monkeypatch.setattr(Storage, "delete", delete_with_the_other)
        collect_garbage(file_store, older_than=AT_ONCE, dry_run=False)
        assert keys_of(file_store, writer.ref) == []

    def test_what_was_finished_while_others_were_looked_at_stays(self) -> None:
        """All that a run had made since was deleted, a committed artifact too."""
        store = StoreThatARunGoesOnIn("memory://gone-on-with")
        store.writer(source_recipe(2)).put_frame(0, source_frame(0))
        store.writer(files_recipe(1))
        removed = collect_garbage(store, older_than=AT_ONCE, dry_run=False)
        assert [item.ref.stage for item in removed] == [Stage.DOWNLOAD, Stage.REPORT]
        assert store.read_frame(source_recipe(2).ref).height == 8

    def test_other_files_in_the_root_are_left_alone(self, store: ArtifactStore) -> None:
        for key in ("download/notes/a.txt", "elsewhere/a", "download/" + "0" * 19 + "/recipe.json"):
            store.storage.put(key, b"mine")
        assert collect_garbage(store, older_than=AT_ONCE, dry_run=False) == []
