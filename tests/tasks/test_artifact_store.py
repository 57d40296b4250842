"""The store and the stage runner, on a folder, in memory and on a real S3 server."""

import pickle
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from uuid import uuid4

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_contracts.artifact import Recipe
from data_contracts.enums import Stage
from data_contracts.registry import ContractError
from tasks.artifacts.errors import ArtifactNotFound, CorruptArtifact, RecipeMismatch
from tasks.artifacts.provenance import code_version
from tasks.artifacts.stage import NotMade, begin_stage, finish_stage, run_shard, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.storage.errors import StoreError
from tests.architecture.source_tree import CHECKOUT
from tests.artifacts import (
    files_recipe,
    keys_of,
    make_file_shard,
    make_source_shard,
    source_frame,
    source_recipe,
    stage_run,
)
from tests.patience import PATIENCE_SECONDS


def set_created_at(store: ArtifactStore, recipe: Recipe, created_at: str) -> None:
    manifest = store.manifest(recipe.ref)
    provenance = manifest.provenance.model_copy(update={"created_at": created_at})
    changed = manifest.model_copy(update={"provenance": provenance})
    store.storage.put(f"{recipe.ref.prefix}/manifest.json", changed.model_dump_json().encode())


def answers_and_table(num_files: int = 1) -> tuple[Recipe, Recipe]:
    """Recipes of an evaluation."""
    stage = {"stage": Stage.EVALUATE}
    answers = files_recipe(1, name="answers").model_copy(update=stage)
    table = files_recipe(num_files, name="table")
    return answers, table.model_copy(update={**stage, "inputs": (str(answers.ref),)})


class TestWritingAndReading:
    def test_a_stage_commits_what_its_shards_return(self, store: ArtifactStore) -> None:
        ref = run_stage(stage_run(store), source_recipe(), make_source_shard)
        manifest = store.manifest(ref)
        assert manifest.num_rows == 12
        assert manifest.statistics == {"files": 12.0, "seconds": 1.5}
        assert manifest.recipe == source_recipe()
        expected = pl.concat([source_frame(index).sort("path") for index in range(3)])
        assert_frame_equal(store.read_frame(ref), expected)
        assert_frame_equal(store.read_frame(ref, ["uri"]), expected.select("uri"))
        made = store.manifest(ref)
        assert_frame_equal(store.read_shard_frame(made, 1), expected[4:8])
        assert_frame_equal(store.read_shard_frame(made, 1, ["uri"]), expected[4:8].select("uri"))

    def test_layout_is_the_documented_one(self, store: ArtifactStore) -> None:
        ref = run_stage(stage_run(store), source_recipe(2), make_source_shard)
        shards = [shard.key for shard in store.manifest(ref).shards]
        first, second = (shard.sha256[:12] for shard in store.manifest(ref).shards)
        assert shards == [
            f"shards/00000-of-00002-{first}.parquet",
            f"shards/00001-of-00002-{second}.parquet",
        ]
        receipts = ["receipts/00000.json", "receipts/00001.json"]
        assert sorted(keys_of(store, ref)) == ["manifest.json", *receipts, "recipe.json", *shards]

    def test_records_are_stored_as_json_lines(self, store: ArtifactStore) -> None:
        recipe = source_recipe(1).model_copy(update={"schema_id": "qa_record.v1"})
        row = {
            "question_id": "0" * 20,
            "dataset": "gqa",
            "source_id": "1",
            "turn": 0,
            "kind": "natural",
            "image_uri": "a.png",
            "image_sha256": None,
            "question": "what?",
            "answers": ["a"],
            "status": "ok",
            "reason": "",
        }
        writer = store.writer(recipe)
        assert writer.put_frame(0, pl.DataFrame([row])).key.endswith(".jsonl")
        writer.commit()
        assert store.read_frame(writer.ref).to_dicts() == [row]

    def test_rows_in_parts_are_stored_as_rows_at_once_are(self, store: ArtifactStore) -> None:
        """Row groups, and with them the bytes, do not depend on how the parts are cut."""
        frame = source_frame(0, num_rows=2500).sort("path")
        one, cut = source_recipe(1, parts="one"), source_recipe(1, parts="many")
        whole = store.writer(one).put_frame(0, frame)
        writer = store.writer(cut)
        parts = [frame.slice(start, 700) for start in range(0, 2500, 700)]
        streamed = writer.put_frames(0, iter(parts), {"files": 2500})
        assert (streamed.sha256, streamed.num_bytes) == (whole.sha256, whole.num_bytes)
        assert streamed.num_rows == 2500
        assert writer.put_frames(0, iter(()), {}) == streamed, "the first receipt counts"
        assert writer.commit().statistics == {"files": 2500}
        assert_frame_equal(store.read_frame(writer.ref), frame)

    def test_row_groups_are_the_rows_a_few_at_a_time(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(2))
        for index in range(2):
            writer.put_frame(index, source_frame(index, num_rows=2500))
        writer.commit()
        columns = ["sha256", "num_bytes"]
        groups = list(store.row_groups(writer.ref, columns))
        assert len(groups) > 4
        assert max(group.height for group in groups) < 2000
        assert_frame_equal(pl.concat(groups), store.read_frame(writer.ref, columns))

    def test_a_part_that_breaks_the_contract_stores_nothing(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        wrong = source_frame(1).with_columns(num_bytes=pl.lit(-1))
        with pytest.raises(ContractError, match="num_bytes"):
            writer.put_frames(0, iter([source_frame(0), wrong]), {})
        assert writer.missing() == [0]
        assert keys_of(store, writer.ref) == ["recipe.json"]

    def test_files_are_found_by_name(self, store: ArtifactStore) -> None:
        writer = store.writer(files_recipe(2))
        writer.put_bytes(0, "metrics.json", b'{"loss": 0.5}')
        writer.put_bytes(1, "pictures/a.png", b"png")
        writer.commit()
        assert store.file_names(writer.ref) == ["metrics.json", "pictures/a.png"]
        assert store.read_file(writer.ref, "metrics.json") == b'{"loss": 0.5}'
        assert store.read_file(writer.ref, "pictures/a.png") == b"png"
        assert store.read_uri(store.file_uri(writer.ref, "pictures/a.png")) == b"png"
        with pytest.raises(ArtifactNotFound, match=r"no file 'b.png', only metrics.json"):
            store.read_file(writer.ref, "b.png")

    def test_blobs_are_read_by_their_relative_uri(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        uri = writer.put_blob(b"image", ".png")
        assert uri == writer.put_blob(b"image", ".png")
        assert uri.startswith(f"{writer.ref}/blobs/")
        assert store.read_uri(uri) == b"image"

    def test_no_shards_is_an_empty_table(self, store: ArtifactStore) -> None:
        ref = run_stage(stage_run(store), source_recipe(0), make_source_shard)
        assert store.is_committed(ref)
        assert store.read_frame(ref).shape == (0, 4)

    def test_a_shard_without_rows_is_stored(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        assert writer.put_frame(0, source_frame(0, num_rows=0)).num_rows == 0
        writer.commit()
        assert store.read_frame(writer.ref).height == 0

    def test_provenance_says_who_and_when(self, memory_store: ArtifactStore) -> None:
        ref = run_stage(stage_run(memory_store), source_recipe(0), make_source_shard)
        provenance = memory_store.manifest(ref).provenance
        age = datetime.now(UTC) - datetime.fromisoformat(provenance.created_at)
        assert timedelta(0) <= age < timedelta(minutes=1)
        assert provenance.code_version[0].isdigit()
        assert provenance.packages["pyarrow"] == sys.modules["pyarrow"].__version__

    @pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="an installed copy has no commit")
    def test_provenance_names_the_commit_of_a_checkout(self) -> None:
        command = ["git", "rev-parse", "--short=12", "HEAD"]
        commit = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True).stdout
        assert f"+g{commit.strip()}" in code_version()

    def test_names_cannot_leave_the_artifact(self, file_store: ArtifactStore) -> None:
        writer = file_store.writer(files_recipe(1))
        for name in ("../x", "a/../../x", "a//b", ""):
            with pytest.raises(StoreError, match="not a path below"):
                writer.put_bytes(0, name, b"")

    def test_a_name_can_be_used_once(self, memory_store: ArtifactStore) -> None:
        writer = memory_store.writer(files_recipe(2))
        writer.put_bytes(0, "a.txt", b"0")
        writer.put_bytes(1, "a.txt", b"1")
        with pytest.raises(ValueError, match=r"two files .* 'a.txt'"):
            writer.commit()

    def test_rows_that_break_their_contract_are_not_stored(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        with pytest.raises(ContractError, match="num_bytes"):
            writer.put_frame(0, source_frame(0).with_columns(num_bytes=-1))
        assert keys_of(store, writer.ref) == ["recipe.json"]

    def test_rows_go_by_put_frame_only(self, memory_store: ArtifactStore) -> None:
        with pytest.raises(ValueError, match="put_frame"):
            memory_store.writer(source_recipe(1)).put_bytes(0, "a", b"")

    def test_a_shard_outside_the_plan_is_refused(self, memory_store: ArtifactStore) -> None:
        with pytest.raises(ValueError, match="shard 1 of 1"):
            memory_store.writer(source_recipe(1)).put_frame(1, source_frame(0))

    def test_a_store_can_be_sent_to_another_process(self, store: ArtifactStore) -> None:
        ref = run_stage(stage_run(store), source_recipe(1), make_source_shard)
        assert pickle.loads(pickle.dumps(store)).read_frame(ref).height == 4  # noqa: S301


class TestVisibility:
    def test_nothing_is_visible_before_the_commit(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(2))
        writer.put_frame(0, source_frame(0))
        writer.put_frame(1, source_frame(1))
        assert not store.is_committed(writer.ref)
        for read in (store.read_frame, store.manifest, store.file_names):
            with pytest.raises(ArtifactNotFound, match=r"not committed.*sdrpn stage download"):
                read(writer.ref)
        writer.commit()
        assert store.read_frame(writer.ref).height == 8

    def test_commit_needs_every_shard(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(3))
        writer.put_frame(1, source_frame(1))
        with pytest.raises(StoreError, match=r"2 of 3 shards are missing \(0, 2\)"):
            writer.commit()
        assert not store.is_committed(writer.ref)

    def test_commit_again_returns_the_first_manifest(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        writer.put_frame(0, source_frame(0))
        first = writer.commit()
        assert store.writer(source_recipe(1)).commit() == first

    def test_ids_that_share_letters_do_not_mix(self, store: ArtifactStore) -> None:
        """Listing ``a/b`` as a prefix would also find ``a/bc``."""
        ref = run_stage(stage_run(store), source_recipe(1), make_source_shard)
        store.storage.put(f"{ref.prefix}0/shards/x", b"a neighbour")
        store.discard(ref)
        assert store.storage.read(f"{ref.prefix}0/shards/x") == b"a neighbour"
        assert keys_of(store, ref) == []


class TestSideBySide:
    def test_so_many_shards_are_made_at_once_and_no_more(self, memory_store: ArtifactStore) -> None:
        seen: list[tuple[str, int, int]] = []
        together, at_work, most = Barrier(3, timeout=PATIENCE_SECONDS), list[int](), 0

        def make_shard(index: int) -> object:
            nonlocal most
            at_work.append(index)
            together.wait()
            most = max(most, len(at_work))
            together.wait()
            at_work.remove(index)
            return make_source_shard(index)

        run = stage_run(memory_store, on_progress=lambda *event: seen.append(event))
        ref = run_stage(run, source_recipe(6), make_shard, num_at_once=3)
        assert most == 3
        assert seen == sorted(set(seen)), "never the same twice"
        assert seen[-1] == ("download", 6, 6)
        alone = ArtifactStore(f"memory://{uuid4().hex}")
        run_stage(stage_run(alone), source_recipe(6), make_source_shard)
        assert memory_store.manifest(ref).shards == alone.manifest(ref).shards

    def test_one_that_fails_leaves_what_is_made(self, memory_store: ArtifactStore) -> None:
        def make_shard(index: int) -> object:
            if index == 1:
                raise ZeroDivisionError
            return make_source_shard(index)

        with pytest.raises(ZeroDivisionError):
            run_stage(stage_run(memory_store), source_recipe(2), make_shard, num_at_once=2)
        assert memory_store.missing(source_recipe(2)) == [1]


class TestResuming:
    def test_a_committed_stage_is_skipped(self, store: ArtifactStore) -> None:
        run_stage(stage_run(store), source_recipe(), make_source_shard)
        calls: list[int] = []
        run_stage(stage_run(store), source_recipe(), lambda index: calls.append(index))
        assert calls == []

    def test_only_shards_without_a_receipt_are_made(self, store: ArtifactStore) -> None:
        store.writer(source_recipe()).put_frame(1, source_frame(1))
        calls: list[int] = []

        def make_shard(index: int) -> object:
            calls.append(index)
            return make_source_shard(index)

        ref = run_stage(stage_run(store), source_recipe(), make_shard)
        assert calls == [0, 2]
        assert store.read_frame(ref).height == 12

    def test_a_second_writer_gets_the_first_receipt(self, store: ArtifactStore) -> None:
        first = store.writer(files_recipe(1)).put_bytes(0, "a.txt", b"first")
        second = store.writer(files_recipe(1)).put_bytes(0, "a.txt", b"second")
        assert second == first
        assert store.writer(files_recipe(1)).receipt(0) == first

    def test_shards_can_be_run_in_parts_and_any_order(self, store: ArtifactStore) -> None:
        run, recipe = stage_run(store), source_recipe()
        assert begin_stage(run, recipe) == [0, 1, 2]
        for index in (2, 0, 1, 1):
            run_shard(run, recipe, index, make_source_shard)
        ref = finish_stage(run, recipe)
        assert store.read_frame(ref)["path"].to_list()[0] == "0/0.png"
        assert begin_stage(run, recipe) is None

    def test_progress_counts_what_was_there(self, memory_store: ArtifactStore) -> None:
        memory_store.writer(source_recipe()).put_frame(1, source_frame(1))
        seen: list[tuple[str, int, int]] = []
        run = stage_run(memory_store, on_progress=lambda *event: seen.append(event))
        run_stage(run, source_recipe(), make_source_shard)
        run_stage(run, source_recipe(), make_source_shard)
        assert seen == [("download", done, 3) for done in (1, 2, 3, 3)]

    def test_a_rerun_gives_the_same_bytes(
        self, file_store: ArtifactStore, memory_store: ArtifactStore, s3_store: ArtifactStore
    ) -> None:
        stores = (file_store, memory_store, s3_store)
        refs = [run_stage(stage_run(s), source_recipe(), make_source_shard) for s in stores]
        one, other, third = (s.manifest(ref).shards for s, ref in zip(stores, refs, strict=True))
        assert one == other == third
        assert len(set(refs)) == 1

    def test_force_makes_a_committed_artifact_anew(self, store: ArtifactStore) -> None:
        def make_shard(text: str) -> object:
            return lambda index: make_file_shard(index).__class__("a.txt", text.encode())

        ref = run_stage(stage_run(store), files_recipe(1), make_shard("old"))
        store.writer(files_recipe(1)).save_checkpoint(1, {"a": b"old"})
        assert run_stage(stage_run(store, force=True), files_recipe(1), make_shard("new")) == ref
        assert store.read_file(ref, "a.txt") == b"new"
        assert len(keys_of(store, ref)) == 4

    @pytest.mark.parametrize("stage", [Stage.EVALUATE, Stage.EXTRACT_ATTENTION])
    def test_a_table_that_is_older_than_its_answers_is_made_anew(
        self, memory_store: ArtifactStore, stage: Stage
    ) -> None:
        """A forced evaluation that was stopped kept the old table beside its new answers.

        What an import rejects, in the other stage, is older than its attention on purpose.
        """
        elsewhere = source_recipe(1)
        answers = files_recipe(1, name="answers").model_copy(update={"stage": stage})
        table = files_recipe(1, name="table").model_copy(
            update={"stage": stage, "inputs": (str(answers.ref), str(elsewhere.ref))}
        )
        run = stage_run(memory_store)
        for recipe, make in (
            (answers, make_file_shard),
            (elsewhere, make_source_shard),
            (table, make_file_shard),
        ):
            run_stage(run, recipe, make)
        assert begin_stage(run, table) is None
        set_created_at(memory_store, elsewhere, "2999-01-01T00:00:00+00:00")
        assert begin_stage(run, table) is None  # of another stage, which is forced by itself
        set_created_at(memory_store, answers, "2999-01-01T00:00:00+00:00")
        if stage is not Stage.EVALUATE:
            assert begin_stage(run, table) is None
            memory_store.discard(answers.ref)
            assert begin_stage(run, table) is None
            return
        with pytest.raises(NotMade):
            begin_stage(replace(run, only_looks=True), table)
        assert memory_store.is_committed(table.ref)
        assert begin_stage(run, table) == [0]

    @pytest.mark.parametrize("has_note", [True, False])
    def test_a_clock_that_was_ahead_once_made_a_table_anew_at_every_run(
        self, memory_store: ArtifactStore, has_note: bool
    ) -> None:
        """Its answers were made tomorrow, by another machine's clock. Tables of earlier releases
        have no note of their answers: they are made anew once more."""
        run = stage_run(memory_store)
        answers, table = answers_and_table()
        run_stage(run, answers, make_file_shard)
        set_created_at(memory_store, answers, "2999-01-01T00:00:00+00:00")
        run_stage(run, table, make_file_shard)
        if not has_note:
            memory_store.storage.delete([f"{table.ref.prefix}/inputs.json"])
            assert begin_stage(run, table) == [0]
            run_stage(run, table, make_file_shard)
        assert begin_stage(run, table) is None

    def test_a_table_that_was_begun_of_earlier_answers_is_begun_anew(
        self, memory_store: ArtifactStore
    ) -> None:
        """One of its files would have been of them, the other of the new ones."""
        run = stage_run(memory_store)
        answers, table = answers_and_table(num_files=2)
        run_stage(run, answers, make_file_shard)
        assert begin_stage(run, table) == [0, 1]
        run_shard(run, table, 0, make_file_shard)
        assert begin_stage(run, table) == [1]
        run_stage(replace(run, force=True), answers, make_file_shard)
        set_created_at(memory_store, answers, "2999-01-01T00:00:00+00:00")
        assert begin_stage(run, table) == [0, 1]

    def test_force_of_what_is_not_there_just_runs(self, store: ArtifactStore) -> None:
        """Forcing discards first: what is not there must not be missed."""
        ref = run_stage(stage_run(store, force=True), source_recipe(1), make_source_shard)
        assert_frame_equal(store.read_frame(ref), source_frame(0).sort("path"))
        assert store.manifest(ref).statistics == {"files": 4.0, "seconds": 0.5}

    @pytest.mark.parametrize("damage", [b"", b'{"manifest_version": 1, "rec'])
    def test_damaged_manifest_is_made_again_from_the_receipts(
        self, store: ArtifactStore, damage: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It counted as committed, so that every later stage failed until it was forced."""
        ref = run_stage(stage_run(store), source_recipe(), make_source_shard)
        whole = store.manifest(ref)
        store.storage.put(f"{ref.prefix}/manifest.json", damage)
        with pytest.raises(CorruptArtifact):
            store.read_frame(ref)

        def make_none(index: int) -> object:
            raise AssertionError(f"shard {index} has its receipt")

        assert run_stage(stage_run(store), source_recipe(), make_none) == ref
        assert store.manifest(ref).shards == whole.shards
        (line,) = caplog.messages
        assert "manifest.json: is not a Manifest" in line
        assert line.endswith("it is made again")

    def test_a_stage_tells_of_what_it_makes_and_not_of_what_it_finds(
        self, memory_store: ArtifactStore
    ) -> None:
        started: list[Recipe] = []
        run = stage_run(memory_store, on_start=started.append)
        run_stage(run, source_recipe(), make_source_shard)
        assert started == [source_recipe()]
        run_stage(run, source_recipe(), make_source_shard)
        assert started == [source_recipe()]


class TestCheckpoints:
    def test_the_latest_two_are_kept(self, store: ArtifactStore) -> None:
        writer = store.writer(files_recipe(1))
        assert writer.latest_checkpoint() is None
        for step in (50, 100, 1000):
            writer.save_checkpoint(step, {"rpn.safetensors": b"%d" % step, "state.json": b"{}"})
        assert writer.latest_checkpoint() == (
            1000,
            {"rpn.safetensors": b"1000", "state.json": b"{}"},
        )
        steps = {key.split("/")[1] for key in keys_of(store, writer.ref) if "/" in key}
        assert steps == {"step-00000100", "step-00001000"}

    def test_a_damaged_one_falls_back_to_the_one_before(self, store: ArtifactStore) -> None:
        writer = store.writer(files_recipe(1))
        writer.save_checkpoint(1, {"a": b"one"})
        writer.save_checkpoint(2, {"a": b"two"})
        [key] = [o.key for o in store.storage.find(writer.ref.prefix) if o.key.endswith("/a")][1:]
        store.storage.put(key, b"twO")
        assert writer.latest_checkpoint() == (1, {"a": b"one"})

    def test_one_without_its_manifest_does_not_exist(self, store: ArtifactStore) -> None:
        writer = store.writer(files_recipe(1))
        writer.save_checkpoint(1, {"a": b"one"})
        store.storage.put(f"{writer.ref.prefix}/checkpoints/step-00000002/x/a", b"two")
        assert writer.latest_checkpoint() == (1, {"a": b"one"})

    def test_saving_a_step_again_replaces_it(self, store: ArtifactStore) -> None:
        writer = store.writer(files_recipe(1))
        writer.save_checkpoint(1, {"a": b"one", "b": b"old"})
        writer.save_checkpoint(1, {"a": b"ONE"})
        assert writer.latest_checkpoint() == (1, {"a": b"ONE"})


class TestDamage:
    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda data: data[:-1], "has .* bytes, committed with"),
            (lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:], "does not have the digest"),
            (lambda data: b"", "has 0 bytes"),
            (None, "is missing"),
        ],
    )
    def test_damaged_bytes_are_never_returned(
        self, store: ArtifactStore, change: object, problem: str
    ) -> None:
        ref = run_stage(stage_run(store), source_recipe(2), make_source_shard)
        key = f"{ref.prefix}/{store.manifest(ref).shards[1].key}"
        if change is None:
            store.storage.delete([key])
        else:
            store.storage.put(key, change(store.storage.read(key)))
        with pytest.raises(CorruptArtifact, match=rf"{key}: {problem}.*--force") as caught:
            store.read_frame(ref)
        assert "\n" not in str(caught.value)
        with pytest.raises(CorruptArtifact, match=rf"{key}: {problem}.*--force"):
            list(store.row_groups(ref, ["path"]))
        assert store.read_shard_frame(store.manifest(ref), 0).height == 4
        run_stage(stage_run(store, force=True), source_recipe(2), make_source_shard)
        assert store.read_frame(ref).height == 8

    def test_commit_checks_that_shards_are_whole(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        entry = writer.put_frame(0, source_frame(0))
        store.storage.put(f"{writer.ref.prefix}/{entry.key}", b"short")
        with pytest.raises(CorruptArtifact, match="has 5 bytes, its receipt says"):
            writer.commit()

    @pytest.mark.parametrize("text", [b"", b"{", b"{}", b'{"manifest_version": 2}'])
    def test_a_damaged_manifest_is_named(self, memory_store: ArtifactStore, text: bytes) -> None:
        ref = run_stage(stage_run(memory_store), source_recipe(1), make_source_shard)
        memory_store.storage.put(f"{ref.prefix}/manifest.json", text)
        with pytest.raises(CorruptArtifact, match=r"manifest.json: is not a Manifest"):
            memory_store.read_frame(ref)

    def test_a_manifest_of_another_artifact_is_refused(self, memory_store: ArtifactStore) -> None:
        one = run_stage(stage_run(memory_store), source_recipe(1), make_source_shard)
        other = run_stage(stage_run(memory_store), source_recipe(1, a=1), make_source_shard)
        data = memory_store.storage.read(f"{other.prefix}/manifest.json")
        memory_store.storage.put(f"{one.prefix}/manifest.json", data)
        with pytest.raises(CorruptArtifact, match=f"is the manifest of {other}"):
            memory_store.read_frame(one)

    @pytest.mark.parametrize("content", ["another", "garbage"])
    def test_another_recipe_at_the_address_is_refused(
        self, store: ArtifactStore, content: str
    ) -> None:
        another = source_recipe(1, a=1).model_dump_json().encode()
        key = f"{source_recipe(1).ref.prefix}/recipe.json"
        store.storage.put(key, another if content == "another" else b"\xff")
        with pytest.raises(RecipeMismatch, match=rf"{key}.*--force"):
            run_stage(stage_run(store), source_recipe(1), make_source_shard)
        run_stage(stage_run(store, force=True), source_recipe(1), make_source_shard)


def test_recipe_ids_do_not_depend_on_the_store(
    file_store: ArtifactStore, s3_store: ArtifactStore
) -> None:
    """Moving a store must not orphan its artifacts."""
    recipe: Recipe = source_recipe(1, a=1)
    assert file_store.writer(recipe).ref == s3_store.writer(recipe).ref == recipe.ref
